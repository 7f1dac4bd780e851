"""8,192 puzzles a batch, where the original ran out of 140 GB; nested rematerialisation.

  python -m psann_jax.main --config=configs/sudoku/batch_8192.py

For an accelerator; it has not been run here in full. The study has no result to compare with.
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku(steps=25_000, warmup_steps=700, puzzles=8192)
    config.train.remat = "nested"
    config.eval.every = 2500
    return config
