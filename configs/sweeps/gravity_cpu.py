"""Gravity attention and its switches against transformers, at a size for a CPU: 44 runs to tune, 55 to compare.

  psann-jax sweep --config=configs/sweeps/gravity_cpu.py

Every contender has its own learning rate, chosen on held-out training text. The blocks of those named `_zero` start as
the identity, as those of the base `modern`.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, gravity_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, extend=1)
    return sweep_config(common, gravity_contenders(), seeds=(1, 2, 3, 4, 5), tuning=tuning)
