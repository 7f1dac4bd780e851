"""Which properties of the sine and of its block matter, with the initial weights of `modern`: 48 runs to tune, 80 more.

  psann-jax sweep --config=configs/sweeps/sine_ablations_cpu.py

At a size for a CPU, each variant with its own learning rate, chosen on held-out training text.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, sine_ablations, small_sweep
from psann_jax.experiments.sweeps import contender_config, sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = contender_config(small_sweep(), {"model.base": "respsann", "model.init": "zero_output"})
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    tuning = Tuning({"train.lr": (4e-3, 8e-3, 1.6e-2)}, extend=1)
    return sweep_config(common, sine_ablations(), seeds=(1, 2, 3, 4, 5), tuning=tuning)
