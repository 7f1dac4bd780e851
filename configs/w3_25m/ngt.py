"""The Newton Gravity Transformer as the original runs it: mass in the score, hard cutoff, repulsion every 4 updates.

  python -m psann_jax.main --config=configs/w3_25m/ngt.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return w3_25m("ngt")
