"""Mass multiplies the values instead of the scores; the best of the original's gravity models.

  python -m psann_jax.main --config=configs/w3_25m/mass_in_value.py

2 CPU cores (AMD EPYC): 916 tokens/s in float32 with batches of 2 windows (psann-jax bench throughput);
its 246 M tokens want an accelerator, and the whole run has not been made here. The original's validation loss after
15,000 updates is 4.6635 (one seed).
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.mass = "value"
    return config
