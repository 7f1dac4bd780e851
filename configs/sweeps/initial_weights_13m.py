"""The transformer and waveresnet, each with its own initial weights and with those of `modern`: 16 runs of the proxy.

  psann-jax sweep --config=configs/sweeps/initial_weights_13m.py

It asks whether the gain of waveresnet over the transformer, at the learning rate of the original comparison, is due to
its architecture or to how much its blocks add at the start. A run took half a minute on an H200 that four shared, and
takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from typing import Any

from ml_collections import config_dict

from configs.shared import proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    zero = {"model.init": "zero_output"}
    bases: dict[str, dict[str, Any]] = {
        "transformer": {"model.base": "transformer"},
        "waveresnet": {"model.base": "waveresnet", "model.wave.interleave": True},
    }
    contenders = bases | {f"{name}_zero": settings | zero for name, settings in bases.items()}
    return sweep_config(proxy_sweep("transformer"), contenders, seeds=(1337, 1338, 1339, 1340))
