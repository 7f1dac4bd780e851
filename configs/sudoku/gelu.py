"""GELU in the place of ReLU, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/gelu.py

For an accelerator; it has not been run here in full. The study reports 83.2 % of its test puzzles solved (one seed,
sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return sudoku(activation="gelu")
