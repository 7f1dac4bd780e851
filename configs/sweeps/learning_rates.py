"""Three learning rates on a text of your own, with four seeds each: 12 runs.

  psann-jax sweep --config=configs/sweeps/learning_rates.py --config.data.sources=frankenstein.txt

The others are compared with the first one. A copy of this file with other settings is a sweep of your own.
"""

from ml_collections import config_dict

from configs.own_text import get_config as own_text
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {f"waveresnet_lr{lr}": {"train.lr": lr} for lr in (6e-3, 3e-3, 1.2e-2)}
    return sweep_config(own_text(), contenders, seeds=(1, 2, 3, 4))
