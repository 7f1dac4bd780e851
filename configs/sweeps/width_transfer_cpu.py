"""Does the best learning rate stay the same at four times the width? 15 runs to choose the rates, 12 to compare.

  psann-jax sweep --config=configs/sweeps/width_transfer_cpu.py

At a size for a CPU. The wide model is tuned with equal rates for all parameters, and with the rates of matrices divided
by the width (train.lr_base_width). If the optimum transfers, the report chooses the rate of `narrow` for `wide_scaled`.
"""

from ml_collections import config_dict

from configs.shared import WIKITEXT_2, small_sweep
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.update(sources=(WIKITEXT_2,), valid_sources=(f"{WIKITEXT_2}@validation",))
    base = {"model.base": "transformer"}
    wide = base | {"model.d_model": 256, "model.d_mlp": 1024}
    contenders = {
        "narrow": base | {"model.d_model": 64, "model.d_mlp": 256},
        "wide": wide,
        "wide_scaled": wide | {"train.lr_base_width": 64},
    }
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)}, extend=2)
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4), tuning=tuning)
