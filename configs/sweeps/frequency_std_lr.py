"""The sine's first frequencies, their spread and the learning rate, 27 settings of waveresnet: 54 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/frequency_std_lr.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    grid = {
        "model.sine.freq_init": (1.75, 2.0, 2.25),
        "model.sine.freq_init_std": (0.0, 0.25, 0.5),
        "train.lr": (1.8e-3, 2.0e-3, 2.2e-3),
    }
    return sweep_config(proxy_sweep("waveresnet"), {"waveresnet": {}}, grid=grid, seeds=(1337, 1338))
