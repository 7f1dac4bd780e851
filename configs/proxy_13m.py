"""The 13 M proxy of the base sweeps of 2025-12; another base with --config.model.base=transformer.

  python -m psann_jax.main --config=configs/proxy_13m.py

2 CPU cores (AMD EPYC): 3,300 to 3,500 tokens/s, 2.6 to 3.1 GB in float32 (--config.train.precision=fp32), so its 16.4
M tokens take 80 minutes; on the default text, validation loss 9.71 before and 3.65 after (ppl 38.6, 1.34 bits per
byte, training loss 2.3: it sees its text several times).
"""

from ml_collections import config_dict

from configs.shared import proxy_13m


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return proxy_13m("waveresnet")
