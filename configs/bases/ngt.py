"""Newton Gravity Transformer: attention by distance and mass, at a size that a CPU trains in minutes.

  python -m psann_jax.main --config=configs/bases/ngt.py

2 CPU cores (AMD EPYC): 15,000 tokens/s, 1.1 GB on Python 3.11. The loss has not been measured since the initial
coordinates changed. The settings are those of configs/quickstart.py, for comparison with the other bases.
"""

from ml_collections import config_dict

from configs.shared import small


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return small("ngt")
