"""The sine's initial frequency, its spread and the learning rate, 27 settings of waveresnet: 54 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/frequency_std_lr.py

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    grid = {
        "model.sine.freq_init": (1.75, 2.0, 2.25),
        "model.sine.freq_init_std": (0.0, 0.25, 0.5),
        "train.lr": (1.8e-3, 2.0e-3, 2.2e-3),
    }
    return sweep_config(proxy_sweep("waveresnet"), {"waveresnet": {}}, grid=grid, seeds=(1337, 1338))
