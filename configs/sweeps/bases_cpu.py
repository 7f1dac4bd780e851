"""All bases at a size for a CPU, half a million parameters without the embeddings: 30 runs.

  psann-jax sweep --config=configs/sweeps/bases_cpu.py

Its results on WikiText-2 are in docs/results/bases_cpu.
"""

from ml_collections import config_dict

from configs.shared import BUILTIN_FRACTION, small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = small_contenders() | {"waveresnet": {"model.base": "waveresnet"}}
    common = small_sweep()
    common.data.valid_fraction = BUILTIN_FRACTION
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4, 5))
