"""All bases at a size for a CPU, each with its own learning rate: 20 runs to choose the rates, 25 to compare.

  psann-jax sweep --config=configs/sweeps/tuned_cpu.py

The rates are chosen on held-out training text; the validation text is for the comparison alone. The results on
WikiText-2 are in docs/results/tuned_cpu.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, extend=2)
    return sweep_config(common, small_contenders(), seeds=(1, 2, 3, 4, 5), tuning=tuning)
