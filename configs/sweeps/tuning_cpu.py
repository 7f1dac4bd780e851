"""Which learning rate is best for each base at a size for a CPU, by a part of the training text: 20 runs.

psann-jax sweep --config=configs/sweeps/tuning_cpu.py

No text but the training's is read, so that what is chosen may be held against the validation text (tuned_cpu.py).
"""

from ml_collections import config_dict

from configs.shared import small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    common = small_sweep()
    common.data.valid_fraction = 0.04
    return sweep_config(common, small_contenders(), grid={"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, seeds=(0,))
