"""Random digits in the place of puzzles, for measurements that must not depend on them."""

import itertools
from collections.abc import Iterator

import numpy as np

from psann_jax.config import Config

_BATCHES = 4  # made beforehand and used in turn, so that making them takes no time of a step
_HOLES = 0.65  # share of the cells


class RandomPuzzles:
    """Stands where `psann_jax.data.sudoku.loader.PuzzleData` does and gives training batches of the same form."""

    def __init__(self, config: Config):
        """Args: config."""
        self._config = config

    def train_batches(self, *, seed: int, batch_size: int, **_: int) -> Iterator[dict[str, np.ndarray]]:
        """A few batches again and again: puzzles and solutions (B, 81) uint8, buckets (B,) int32."""
        rng = np.random.default_rng(seed)
        return itertools.cycle([self._batch(rng, batch_size) for _ in range(_BATCHES)])

    def _batch(self, rng: np.random.Generator, batch_size: int) -> dict[str, np.ndarray]:
        solutions = rng.integers(1, 10, (batch_size, 81), np.uint8)
        puzzles = np.where(rng.random(solutions.shape) < _HOLES, np.uint8(0), solutions)
        return {"puzzles": puzzles, "solutions": solutions, "buckets": np.zeros(batch_size, np.int32)}
