"""Three sizes, of 0.1, 0.2 and 0.4 million parameters without embeddings, with tokens in proportion: 36 + 60 runs.

  psann-jax sweep --config=configs/sweeps/ladder_cpu.py

Every contender has its own learning rate at every size, chosen on held-out training text by the first 36 runs. The
largest size reads the 3.07 M tokens of the training text about once.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, ladder_contenders, ladder_rungs, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    common.eval.every = 0
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3)}, extend=2)
    return sweep_config(common, ladder_contenders(), seeds=(1, 2, 3, 4, 5), tuning=tuning, rungs=ladder_rungs())
