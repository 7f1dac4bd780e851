"""8,192 puzzles a batch, where the original ran out of 140 GB; nested rematerialisation.

  python -m psann_jax.main --config=configs/sudoku/batch_8192.py

A puzzle costs about what one of cosine_no_sam does, 19.3 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of
16; it is for an accelerator, and the whole run has not been made here. The study reports no share of solved puzzles to
compare with.
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku(steps=25_000, warmup_steps=700, puzzles=8192)
    config.train.remat = "nested"
    config.eval.every = 2500
    return config
