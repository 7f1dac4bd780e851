"""Gravity with the original's soft cutoff: a score rises to 0, the highest score, at the radius.

  python -m psann_jax.main --config=configs/w3_25m/soft_cutoff.py

One run of the sweep configs/sweeps/w3_25m.py. 2 CPU cores (AMD EPYC): 954 tokens/s in float32 with batches of 2 windows
(psann-jax bench throughput); its 246 M tokens need an accelerator, and the whole run has not been done here. The
original has published no loss for it.
"""

from ml_collections import config_dict

from configs.shared import w3_25m


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return w3_25m("soft_cutoff")
