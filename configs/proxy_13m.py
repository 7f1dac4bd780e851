"""The 13 M proxy of the base sweeps of 2025-12; another base with --config.model.base=transformer.

  python -m psann_jax.main --config=configs/proxy_13m.py

2 CPU cores (AMD EPYC): 3,500 tokens/s and 2.6 GB in float32 (--config.train.precision=fp32), so its 16.4 M tokens take
80 minutes; validation loss 9.7 before, 9.1 after 12 updates of the warm-up, on 60 MB of books. The loss of the whole
run has not been measured yet.
"""

from ml_collections import config_dict

from psann_jax.recipes import proxy_13m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return proxy_13m("waveresnet")
