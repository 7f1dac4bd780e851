"""The study's baseline before the cosine schedule: a constant learning rate after the warm-up.

  python -m psann_jax.main --config=configs/sudoku/constant.py

All else is as in cosine.py: sharpness-aware minimisation, hardest puzzles first, 70,000 updates. A puzzle costs as much
as there: 10.2 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of 16. It needs an accelerator, and the whole
run has not been done here. The study reports 78.5 % of its test puzzles solved (one seed, sudoku-extreme, mean over
five ratings: 99.6, 90.2, 62.3, 66.2 and 74.0 %).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku(sam_rho=0.05)
    config.train.update(schedule="constant", end_lr_ratio=0.1)  # a ratio other than the default would be refused
    return config
