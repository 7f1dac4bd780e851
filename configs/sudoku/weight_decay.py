"""A weight decay of 1, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/weight_decay.py

A puzzle costs about as much as in cosine_no_sam.py: 19.3 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of
16. It needs an accelerator, and the whole run has not been done here. The study reports 70.1 % of its test puzzles
solved (one seed, sudoku-extreme, mean over five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku()
    config.train.weight_decay = 1.0
    return config
