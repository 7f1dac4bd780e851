"""Without the loss that keeps coordinates apart.

  python -m psann_jax.main --config=configs/w3_25m/no_repulsion.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.repulsion.update(weight=0.0, interval=1)
    return config
