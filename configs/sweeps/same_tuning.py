"""The transformer and waveresnet with the same tuning, six learning rates each: 36 runs of the proxy.

  python -m psann_jax.bench sweep --config=configs/sweeps/same_tuning.py

For an accelerator: on 2 CPU cores (AMD EPYC) one run takes 80 minutes in float32.
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import proxy_sweep


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    contenders = {base: {"model.base": base} for base in ("transformer", "waveresnet")}
    grid = {"train.lr": (3e-4, 6e-4, 1.2e-3, 1.8e-3, 2.4e-3, 3.6e-3)}
    return sweep_config(proxy_sweep("transformer"), contenders, grid=grid, seeds=(1337, 1338, 1339))
