"""The reference with the easiest puzzles first.

  python -m psann_jax.main --config=configs/sudoku/regular.py

A puzzle costs about what one of cosine does, 10.2 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of 16; it
is for an accelerator, and the whole run has not been made here. The study reports 80.6 % of its test puzzles solved
(one seed, sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku(sam_rho=0.05)
    config.data.curriculum = "regular"
    return config
