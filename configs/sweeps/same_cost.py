"""All decoder bases with equal tokens, FLOPs, parameters and seconds: 75 runs of the 13 M proxy.

  psann-jax sweep --config=configs/sweeps/same_cost.py

It needs an accelerator: one run takes 80 minutes on 2 CPU cores (AMD EPYC) in float32.
"""

from ml_collections import config_dict

from configs.shared import proxy_contenders, proxy_sweep
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    budgets = ("tokens", "flops", "parameters", "seconds")
    seeds = (1337, 1338, 1339, 1340, 1341)
    return sweep_config(proxy_sweep("transformer"), proxy_contenders(), seeds=seeds, budgets=budgets)
