"""The trainable sine in the place of ReLU, without sharpness-aware minimisation: this project's own question.

  python -m psann_jax.main --config=configs/sudoku/sine.py

For an accelerator; it has not been run here in full. The study has no result to compare with.
"""

from ml_collections import config_dict

from psann_jax.recipes import sudoku


def get_config() -> config_dict.ConfigDict:
    """The experiment."""
    return sudoku(activation="sine")
