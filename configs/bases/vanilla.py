"""Transformer with learned positions and a tied head, the gravity model's baseline, at a size for a CPU.

  python -m psann_jax.main --config=configs/bases/vanilla.py

2 CPU cores (AMD EPYC), with the split of version 0.1: validation loss 8.33 before training and 5.02 after 300 updates
(ppl 152) on Python 3.11; 17,700 tokens/s, 1.1 GB. The settings are those of configs/quickstart.py, for comparison with
the other bases.
"""

from ml_collections import config_dict

from configs.shared import small


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return small("vanilla")
