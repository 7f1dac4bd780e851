"""Which task an experiment is."""

from psann_jax.config import DataConfig, PuzzlesConfig
from psann_jax.tasks.lm import LanguageModel
from psann_jax.tasks.sudoku import SudokuTask

# The dataclass of the `data` section -> its task.
TASKS: dict[type, type[LanguageModel] | type[SudokuTask]] = {DataConfig: LanguageModel, PuzzlesConfig: SudokuTask}
