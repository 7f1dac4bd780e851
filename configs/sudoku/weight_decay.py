"""A weight decay of 1, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/weight_decay.py

For an accelerator; it has not been run here in full. The study reports 70.1 % of its test puzzles solved (one seed,
sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku()
    config.train.weight_decay = 1.0
    return config
