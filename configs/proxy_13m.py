"""The 13 M proxy of the base sweeps of December 2025.

  python -m psann_jax.main --config=configs/proxy_13m.py

Another base is selected with --config.model.base=transformer. 2 CPU cores (AMD EPYC): 3,300 to 3,500 tokens/s, 2.6 to
3.1 GB in float32 (--config.train.precision=fp32), so its 16.4 M tokens take 80 minutes. On the default text, with the
split of version 0.1, the validation loss is 9.71 before training and 3.65 after it (ppl 38.6, 1.34 bits per byte); the
training loss is 2.3, as the text is seen several times.
"""

from ml_collections import config_dict

from configs.shared import BUILTIN_FRACTION, proxy_13m


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = proxy_13m("waveresnet")
    config.data.valid_fraction = BUILTIN_FRACTION
    return config
