"""The trainable sine instead of ReLU, without sharpness-aware minimisation; not part of the study.

  python -m psann_jax.main --config=configs/sudoku/sine.py

2 CPU cores (AMD EPYC): 14.6 puzzles/s in float32 with batches of 16 (psann-jax bench throughput). It needs an
accelerator, and the whole run has not been done here. The study reports no fraction of solved puzzles to compare with.
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return sudoku(activation="sine")
