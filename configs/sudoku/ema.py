"""Averaged weights, evaluated beside the live ones; without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/ema.py

For an accelerator; it has not been run here in full. The study reports 83.6 % for both of its test puzzles solved
(one seed, sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku()
    config.train.ema_decay = 0.999
    return config
