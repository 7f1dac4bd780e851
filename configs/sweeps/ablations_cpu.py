"""The features that distinguish respsann from the transformer, one by one, at a size for a CPU: 40 runs.

  psann-jax sweep --config=configs/sweeps/ablations_cpu.py

Its results on WikiText-2 are in docs/results/tuned_cpu.
"""

from ml_collections import config_dict

from configs.shared import BUILTIN_FRACTION, ablations, small_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = small_sweep()
    common.data.valid_fraction = BUILTIN_FRACTION
    common.train.lr = 8e-3  # best for respsann on held-out training text (tuned_cpu.py)
    return sweep_config(common, ablations(), seeds=(1, 2, 3, 4, 5))
