"""50,000 updates, without sharpness-aware minimisation.

  python -m psann_jax.main --config=configs/sudoku/steps_50k.py

For an accelerator; it has not been run here in full. The study reports 82.8 % of its test puzzles solved (one seed,
sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return sudoku(steps=50_000, warmup_steps=1400)
