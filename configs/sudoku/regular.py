"""The reference with the easiest puzzles first.

  python -m psann_jax.main --config=configs/sudoku/regular.py

A puzzle costs about as much as in cosine.py: 10.2 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of 16. It
needs an accelerator, and the whole run has not been done here. The study reports 80.6 % of its test puzzles solved (one
seed, sudoku-extreme, mean over five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku(sam_rho=0.05)
    config.data.curriculum = "regular"
    return config
