"""The learning rate of waveresnet from 0.0022 up: 10 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/lr_creep.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    grid = {"train.lr": (2.2e-3, 2.3e-3, 2.4e-3, 2.5e-3, 2.6e-3)}
    return sweep_config(proxy_sweep("waveresnet"), {"waveresnet": {}}, grid=grid, seeds=(1337, 1338))
