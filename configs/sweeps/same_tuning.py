"""The transformer and waveresnet with equal tuning, six learning rates each: 60 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/same_tuning.py

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    contenders = {base: {"model.base": base} for base in ("transformer", "waveresnet")}
    grid = {"train.lr": (3e-4, 6e-4, 1.2e-3, 1.8e-3, 2.4e-3, 3.6e-3)}
    return sweep_config(proxy_sweep("transformer"), contenders, grid=grid, seeds=(1337, 1338, 1339, 1340, 1341))
