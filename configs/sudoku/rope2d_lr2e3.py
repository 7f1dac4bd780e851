"""Rotary positions by row and column, 796,937 parameters: the study's best run with more iterations at test time.

  python -m psann_jax.main --config=configs/sudoku/rope2d_lr2e3.py

2 CPU cores (AMD EPYC): 15.9 puzzles/s in float32 with batches of 16 (psann-jax bench throughput). It needs an
accelerator, and the whole run has not been done here. The study reports 81.8 % of its test puzzles solved after 16
iterations and 98.9 % after 1,024 (one seed, sudoku-extreme, mean over five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku(steps=50_000, warmup_steps=1400, lr=2e-3, puzzles=2048)
    config.model.positional_encoding = "rope2d"
    return config
