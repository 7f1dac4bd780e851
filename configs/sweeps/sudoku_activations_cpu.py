"""The activation of the Sudoku transformer at a size for a CPU, a shortened quickstart: 15 runs.

  psann-jax sweep --config=configs/sweeps/sudoku_activations_cpu.py

A run has 1,500 of the quickstart's 4,000 updates, which take six minutes on 2 CPU cores (AMD EPYC).
"""

from ml_collections import config_dict

from configs.shared import sudoku_quickstart
from psann_jax.experiments.sweeps import sweep_config


def get_config() -> config_dict.ConfigDict:
    """Returns the sweep."""
    common = sudoku_quickstart()
    common.train.steps = 1500
    contenders = {name: {"model.base": "sudoku", "model.mlp_activation": name} for name in ("relu", "gelu", "sine")}
    return sweep_config(common, contenders, seeds=(1, 2, 3, 4, 5))
