"""Gravity attention and its switches against two transformers, at a size for a CPU: 28 runs to tune, 35 to compare.

  psann-jax sweep --config=configs/sweeps/gravity_cpu.py

Every contender has its own learning rate, chosen on held-out training text.
"""

from ml_collections import config_dict

from configs.shared import gravity_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, extend=1)
    return sweep_config(small_sweep(), gravity_contenders(), seeds=(1, 2, 3, 4, 5), tuning=tuning)
