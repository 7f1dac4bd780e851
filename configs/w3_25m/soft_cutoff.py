"""The original's soft cutoff: a score falls to 0 at the radius, where 0 is the highest score there is.

  python -m psann_jax.main --config=configs/w3_25m/soft_cutoff.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.cutoff = "soft"
    return config
