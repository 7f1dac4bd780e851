"""Random digits in place of puzzles, for measurements that must not depend on real ones."""

import itertools
from collections.abc import Iterator

import numpy as np

from psann_jax.config import Config

_N_BATCHES = 4  # created once and then cycled, so that no time of a step goes into creating them
_EMPTY_FRACTION = 0.65  # of the cells


class RandomPuzzles:
    """Has the interface of `psann_jax.data.sudoku.loader.PuzzleData` for training batches, with random content."""

    def __init__(self, config: Config):
        """Needs nothing of the config; all families of random data have this signature."""
        del config

    def train_batches(self, *, seed: int, batch_size: int, **_: int) -> Iterator[dict[str, np.ndarray]]:
        """Cycles through a few batches: puzzles and solutions (B, 81) uint8, buckets (B,) int32."""
        rng = np.random.default_rng(seed)
        return itertools.cycle([self._batch(rng, batch_size) for _ in range(_N_BATCHES)])

    def _batch(self, rng: np.random.Generator, batch_size: int) -> dict[str, np.ndarray]:
        solutions = rng.integers(1, 10, (batch_size, 81), np.uint8)
        puzzles = np.where(rng.random(solutions.shape) < _EMPTY_FRACTION, np.uint8(0), solutions)
        return {"puzzles": puzzles, "solutions": solutions, "buckets": np.zeros(batch_size, np.int32)}
