"""The Newton Gravity Transformer as the original runs it: mass in the score, hard cutoff, repulsion every 4 updates.

  python -m psann_jax.main --config=configs/w3_25m/ngt.py

2 CPU cores (AMD EPYC): 982 tokens/s in float32 with batches of 2 windows (psann-jax bench throughput);
its 246 M tokens want an accelerator, and the whole run has not been made here. The original's validation loss after
15,000 updates is 4.7915 (one seed).
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return w3_25m("ngt")
