"""The learning rate of waveresnet from 0.0022 to 0.0026, each against 0.0026: 25 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/lr_creep.py

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {f"waveresnet_lr{lr}": {"train.lr": lr} for lr in (2.6e-3, 2.5e-3, 2.4e-3, 2.3e-3, 2.2e-3)}
    return sweep_config(proxy_sweep("waveresnet"), contenders, seeds=(1337, 1338, 1339, 1340, 1341))
