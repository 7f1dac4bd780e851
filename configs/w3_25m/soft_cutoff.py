"""The original's soft cutoff: a score falls to 0 at the radius, where 0 is the highest score there is.

  python -m psann_jax.main --config=configs/w3_25m/soft_cutoff.py

2 CPU cores (AMD EPYC): 954 tokens/s in float32 with batches of 2 windows (psann-jax bench throughput);
its 246 M tokens want an accelerator, and the whole run has not been made here. The original has
published no loss of it.
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.cutoff = "soft"
    return config
