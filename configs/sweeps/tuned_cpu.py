"""All bases at a size for a CPU, each with its best learning rate of tuning_cpu.py: 25 runs.

  psann-jax sweep --config=configs/sweeps/tuned_cpu.py

Its results on WikiText-2 are in docs/results/tuned_cpu.
"""

from ml_collections import config_dict

from configs.shared import small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config

# On held-out training text of WikiText-2, of 2e-3, 4e-3, 8e-3 and 1.6e-2.
_BEST = {"transformer": 4e-3, "ngt": 4e-3, "respsann": 8e-3, "sgrpsann": 8e-3, "waveresnet_interleave": 8e-3}


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {name: settings | {"train.lr": _BEST[name]} for name, settings in small_contenders().items()}
    return sweep_config(small_sweep(), contenders, seeds=(1, 2, 3, 4, 5))
