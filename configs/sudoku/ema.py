"""An exponential moving average of the weights, evaluated beside the weights; no sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/ema.py

2 CPU cores (AMD EPYC): 16.6 puzzles/s in float32 with batches of 16 (psann-jax bench throughput). It needs an
accelerator, and the whole run has not been done here. The study reports 83.6 % of its test puzzles solved with both
(one seed, sudoku-extreme, mean over five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku()
    config.train.ema_decay = 0.999
    return config
