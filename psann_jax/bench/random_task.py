"""The task of an experiment on random data."""

from typing import Any, cast

from psann_jax.bench.random_puzzles import RandomPuzzles
from psann_jax.bench.random_text import RandomText
from psann_jax.config import Config, PuzzlesConfig
from psann_jax.tasks.lm import LanguageModel
from psann_jax.tasks.sudoku import SudokuTask


def random_task(config: Config) -> LanguageModel | SudokuTask:
    """The task; a language model needs model.vocab_size (`psann_jax.bench.random_text.with_vocabulary`)."""
    if isinstance(config.data, PuzzlesConfig):
        return SudokuTask(config, cast(Any, RandomPuzzles(config)))
    return LanguageModel(config, cast(Any, RandomText(config)))
