"""The transformer that the gravity models of this experiment are compared with: 25.5 M parameters.

  python -m psann_jax.main --config=configs/w3_25m/vanilla.py

MEASURED
"""

from ml_collections import config_dict

from psann_jax.recipes import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return w3_25m("vanilla")
