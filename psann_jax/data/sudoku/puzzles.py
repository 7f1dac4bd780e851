"""Sets of puzzles with their solutions and ratings, and their division by grids."""

from dataclasses import dataclass

import numpy as np

from psann_jax.config.sudoku import BUCKETS

_LEAST = np.array((0, 1, 3, 11, 51))
_MOST = np.array((0, 2, 10, 50, np.inf))


@dataclass(frozen=True)
class Puzzles:
    """Puzzles in memory.

    Attributes:
      puzzles_Nx81: digits, 0 for empty cells, uint8.
      solutions_Nx81: uint8.
      ratings_N: float64; whose measure it is depends on where they come from.
    """

    puzzles_Nx81: np.ndarray
    solutions_Nx81: np.ndarray
    ratings_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ratings_N)

    def take(self, rows: np.ndarray) -> "Puzzles":
        """The puzzles of these rows, or where a mask is true."""
        return Puzzles(self.puzzles_Nx81[rows], self.solutions_Nx81[rows], self.ratings_N[rows])

    @property
    def buckets_N(self) -> np.ndarray:
        """The index into `BUCKETS` of each rating, -1 for ratings that are in none."""
        in_bucket = (self.ratings_N[:, None] >= _LEAST) & (self.ratings_N[:, None] <= _MOST)
        return np.where(in_bucket.any(axis=1), in_bucket.argmax(axis=1), -1)

    def describe(self) -> str:
        """How many puzzles there are in each bucket."""
        counts = np.bincount(self.buckets_N + 1, minlength=1 + len(BUCKETS)).tolist()
        parts = [f"{name}: {n:,}" for name, n in zip(BUCKETS, counts[1:], strict=True)]
        if counts[0]:
            parts.append(f"in no bucket and not used: {counts[0]:,}")
        return f"{len(self):,} puzzles, by rating {', '.join(parts)}"


def joined(parts: list[Puzzles]) -> Puzzles:
    """All puzzles of several sets, one after another."""
    arrays = [np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)]
    return Puzzles(*arrays)


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """The least and the most rating, as whole numbers, of a bucket."""
    return int(_LEAST[bucket]), int(min(_MOST[bucket], 2**31))


def choose_validation(
    groups_N: np.ndarray, keys_N: np.ndarray, buckets_N: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divides puzzles so that no grid of one side, however it is turned, is on the other.

    Of the groups of each bucket (a group counts for the bucket of its first puzzle) the share `fraction` is drawn, but
    at least one where there are two. A puzzle outside them whose grid is that of a drawn one is left out.

    Args:
      groups_N: puzzles of the same number stay together.
      keys_N: `grid_keys` of their solutions.
      buckets_N: bucket of each.
      fraction: of the groups.
      seed: of the draw.

    Returns:
      Rows for training and rows for validation.
    """
    _, first, group_N = np.unique(groups_N, return_index=True, return_inverse=True)
    drawn = np.zeros(len(first), bool)
    rng = np.random.default_rng(seed)
    for bucket in np.unique(buckets_N):
        members = np.flatnonzero(buckets_N[first] == bucket)
        n = min(int(np.ceil(fraction * len(members))), len(members) - 1)
        drawn[rng.permutation(members)[:n]] = True
    valid_N = drawn[group_N]
    shared_N = np.isin(keys_N, keys_N[valid_N])
    return np.flatnonzero(~shared_N), np.flatnonzero(valid_N)
