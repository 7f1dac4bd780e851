"""50,000 updates, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/steps_50k.py

A puzzle costs about as much as in cosine_no_sam.py: 19.3 puzzles/s on 2 CPU cores (AMD EPYC) in float32 with batches of
16. It needs an accelerator, and the whole run has not been done here. The study reports 82.8 % of its test puzzles
solved (one seed, sudoku-extreme, mean over five ratings).
"""

from ml_collections import config_dict

from configs.shared import sudoku


def get_config() -> config_dict.ConfigDict:
    """Returns the experiment."""
    return sudoku(steps=50_000, warmup_steps=1400)
