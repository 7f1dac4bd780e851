"""The transformer and waveresnet at the rate that waveresnet was tuned to, as it was compared first: 6 runs.

  psann-jax sweep --config=configs/sweeps/same_rate.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    contenders = {base: {"model.base": base} for base in ("transformer", "waveresnet")}
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339))
