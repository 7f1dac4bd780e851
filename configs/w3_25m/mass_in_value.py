"""Mass multiplies the values instead of the scores; the best of the original's gravity models.

  python -m psann_jax.main --config=configs/w3_25m/mass_in_value.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.mass = "value"
    return config
