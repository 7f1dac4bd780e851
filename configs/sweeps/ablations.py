"""The features that distinguish waveresnet from the transformer, one by one: 40 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/ablations.py

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import ablations, proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    return sweep_config(proxy_sweep("respsann"), ablations(), seeds=(1337, 1338, 1339, 1340, 1341))
