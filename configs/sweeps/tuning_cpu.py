"""The best learning rate for each base at a size for a CPU, chosen on held-out training text: 20 runs.

  psann-jax sweep --config=configs/sweeps/tuning_cpu.py

It reads only the training text, so that tuned_cpu.py can compare the chosen rates on the validation text. The results
on WikiText-2 are in docs/results/tuned_cpu.
"""

from ml_collections import config_dict

from configs.shared import small_contenders, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.valid_fraction = 0.04
    return sweep_config(common, small_contenders(), grid={"train.lr": (2e-3, 4e-3, 8e-3, 1.6e-2)}, seeds=(0,))
