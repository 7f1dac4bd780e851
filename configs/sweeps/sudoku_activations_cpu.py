"""The activation of the Sudoku transformer at a size for a CPU: its quickstart, shortened: 9 runs.

python -m psann_jax.bench sweep --config=configs/sweeps/sudoku_activations_cpu.py
"""

from ml_collections import config_dict

from psann_jax.bench.sweeps import sweep_config
from psann_jax.recipes import sudoku_quickstart


def get_config() -> config_dict.ConfigDict:
    """The sweep."""
    common = sudoku_quickstart()
    common.train.steps = 1500
    contenders = {name: {"model.base": "sudoku", "model.mlp_activation": name} for name in ("relu", "gelu", "sine")}
    return sweep_config(common, contenders, seeds=(1, 2, 3))
