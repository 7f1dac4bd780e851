"""All bases at a size for a CPU, each with the learning rate that tuning_cpu.py found best for it: 15 runs.

python -m psann_jax.bench sweep --config=configs/sweeps/tuned_cpu.py
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import small_contenders, small_sweep

# By a part of the training text of WikiText-2, of 2e-3, 4e-3, 8e-3 and 1.6e-2.
_BEST = {"transformer": 4e-3, "ngt": 4e-3, "respsann": 8e-3, "sgrpsann": 8e-3, "waveresnet_interleave": 8e-3}


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    contenders = {name: settings | {"train.lr": _BEST[name]} for name, settings in small_contenders().items()}
    return sweep_config(small_sweep(), contenders, seeds=(1, 2, 3))
