"""All bases at a size for a CPU: half a million parameters without the embeddings, three seeds: 18 runs.

python -m psann_jax.bench sweep --config=configs/sweeps/bases_cpu.py
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import small_contenders, small_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    contenders = small_contenders() | {"waveresnet": {"model.base": "waveresnet"}}
    return sweep_config(small_sweep(), contenders, seeds=(1, 2, 3))
