"""8,192 puzzles per batch with nested rematerialisation; the original ran out of 140 GB of memory.

  python -m psann_jax.main --config=configs/sudoku/batch_8192.py

A puzzle costs about as much as in cosine_no_sam.py: 19.3 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of
16. It needs an accelerator, and the whole run has not been done here. The study reports no fraction of solved puzzles
to compare with.
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    config = sudoku(steps=25_000, warmup_steps=700, puzzles=8192)
    config.train.remat = "nested"
    config.eval.every = 2500
    return config
