"""The bases against a modern baseline, each with its own learning rate and two kinds of initial weights: 90 runs.

  psann-jax sweep --config=configs/sweeps/fair_cpu.py
  psann-jax sweep --config=configs/sweeps/fair_cpu.py --reference=modern

At a size for a CPU: 40 runs to choose the rates on held-out training text, 50 to compare. The second command reports
the same runs against the base `modern`.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, fair_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    own = {"modern_muon": {"train.lr": (1e-2, 2e-2, 4e-2, 8e-2)}}
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, own=own, extend=2)
    return sweep_config(common, fair_contenders(), seeds=(1, 2, 3, 4, 5), tuning=tuning)
