"""Repulsion in every eighth update instead of every fourth.

  python -m psann_jax.main --config=configs/w3_25m/repulsion_interval_8.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.repulsion.interval = 8
    return config
