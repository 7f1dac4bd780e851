"""What waveresnet has and the transformer has not, each alone: 24 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/ablations.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import ablations, proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    return sweep_config(proxy_sweep("respsann"), ablations(), seeds=(1337, 1338, 1339))
