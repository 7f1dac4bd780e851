"""The transformer and waveresnet, both at waveresnet's tuned learning rate: 10 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/same_rate.py

This is how the original compared the two.

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {base: {"model.base": base} for base in ("transformer", "waveresnet")}
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339, 1340, 1341))
