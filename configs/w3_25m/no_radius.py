"""Without a cutoff: every earlier token counts, however far.

  python -m psann_jax.main --config=configs/w3_25m/no_radius.py

2 CPU cores (AMD EPYC): 958 tokens/s in float32 with batches of 2 windows (psann-jax bench throughput);
its 246 M tokens want an accelerator, and the whole run has not been made here. The original's validation loss after
15,000 updates is 4.7940 (one seed).
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = w3_25m("ngt")
    config.model.cutoff = "none"
    return config
