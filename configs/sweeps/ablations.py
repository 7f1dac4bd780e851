"""What waveresnet has and the transformer has not, each alone: 24 runs of the proxy.

  psann-jax sweep --config=configs/sweeps/ablations.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from configs.shared import ablations, proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    return sweep_config(proxy_sweep("respsann"), ablations(), seeds=(1337, 1338, 1339))
