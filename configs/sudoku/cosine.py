"""The study's reference: sharpness-aware minimisation, cosine to 1 %, hardest puzzles first.

  python -m psann_jax.main --config=configs/sudoku/cosine.py

For an accelerator; it has not been run here in full. The study reports 84.0 % of its test puzzles solved (one seed,
sudoku-extreme, mean of five ratings).
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return sudoku(sam_rho=0.05)
