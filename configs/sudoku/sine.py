"""The trainable sine in the place of ReLU, without sharpness-aware minimisation: this project's own question.

  python -m psann_jax.main --config=configs/sudoku/sine.py

2 CPU cores (AMD EPYC): 14.6 puzzles/s in float32 with batches of 16 (psann-jax bench throughput); it is for
an accelerator, and the whole run has not been made here. The study reports no share of solved puzzles to compare with.
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return sudoku(activation="sine")
