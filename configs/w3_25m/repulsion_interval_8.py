"""Gravity with repulsion in every eighth update instead of every fourth.

  python -m psann_jax.main --config=configs/w3_25m/repulsion_interval_8.py

One run of the sweep configs/sweeps/w3_25m.py. 2 CPU cores (AMD EPYC): 965 tokens/s in float32 with batches of 2 windows
(psann-jax bench throughput); its 246 M tokens need an accelerator, and the whole run has not been done here. The
original's validation loss after 15,000 updates is 4.7889 (one seed).
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return w3_25m("repulsion_interval_8")
