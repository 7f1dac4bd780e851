"""What respsann has and the transformer has not, each alone, at a size for a CPU: 24 runs.

psann-jax sweep --config=configs/sweeps/ablations_cpu.py
"""

from ml_collections import config_dict

from configs.shared import ablations, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    common = small_sweep()
    common.train.lr = 8e-3  # respsann's best, by a part of the training text (tuning_cpu.py)
    return sweep_config(common, ablations(), seeds=(1, 2, 3))
