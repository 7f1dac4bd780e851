"""A million parameters, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/params_1m.py

A puzzle costs about a quarter more than in cosine_no_sam, which has 6.9 puzzles/s on 2 CPU cores (AMD EPYC) in
float32 with batches of 16; it is for an accelerator, and the whole run has not been made here. The study reports 83.2
% of its test puzzles solved (one seed, sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    config = sudoku(steps=50_000, warmup_steps=1400)
    config.model.update(d_model=144, d_mlp=576)
    return config
