"""Sets of puzzles with solutions and ratings, and their split into training and validation puzzles."""

from dataclasses import dataclass

import numpy as np

from psann_jax.config.sudoku import BUCKETS

# Lowest and highest rating of each bucket.
_LOWEST = np.array((0, 1, 3, 11, 51))
_HIGHEST = np.array((0, 2, 10, 50, np.inf))


@dataclass(frozen=True)
class Puzzles:
    """Puzzles in memory.

    Attributes:
      puzzles_Nx81: digits, 0 for empty cells, uint8.
      solutions_Nx81: digits, uint8.
      ratings_N: difficulty, float64; the measure depends on where the puzzles come from.
    """

    puzzles_Nx81: np.ndarray
    solutions_Nx81: np.ndarray
    ratings_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ratings_N)

    def take(self, rows: np.ndarray) -> "Puzzles":
        """Returns the puzzles of these rows, given as indices or as a mask."""
        return Puzzles(self.puzzles_Nx81[rows], self.solutions_Nx81[rows], self.ratings_N[rows])

    @property
    def buckets_N(self) -> np.ndarray:
        """Index into `BUCKETS` for each rating, -1 for ratings outside all buckets."""
        in_bucket = (self.ratings_N[:, None] >= _LOWEST) & (self.ratings_N[:, None] <= _HIGHEST)
        return np.where(in_bucket.any(axis=1), in_bucket.argmax(axis=1), -1)

    def describe(self) -> str:
        """Returns the number of puzzles, in all and in each bucket, as text."""
        counts = np.bincount(self.buckets_N + 1, minlength=1 + len(BUCKETS)).tolist()
        parts = [f"{name}: {n:,}" for name, n in zip(BUCKETS, counts[1:], strict=True)]
        if counts[0]:
            parts.append(f"in no bucket and not used: {counts[0]:,}")
        return f"{len(self):,} puzzles, by rating {', '.join(parts)}"


def stratified_order(buckets_N: np.ndarray, seed: int) -> np.ndarray:
    """Returns an order of puzzles in which every beginning has nearly the same fraction of each bucket.

    Args:
      buckets_N: bucket of each puzzle.
      seed: of the order within the buckets and of the positions of rare buckets.

    Returns:
      Row indices (N,), each once.
    """
    rng = np.random.default_rng([seed, 2])
    position_N = np.zeros(len(buckets_N))
    for bucket in np.unique(buckets_N):
        members = np.flatnonzero(buckets_N == bucket)
        # Equally spaced over [0, 1), at a common random offset: a single puzzle can stand anywhere.
        position_N[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position_N, kind="stable")


def concatenate(parts: list[Puzzles]) -> Puzzles:
    """Returns the puzzles of several sets, one set after another."""
    arrays = [np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)]
    return Puzzles(*arrays)


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Returns the lowest and the highest rating of a bucket, as integers; 2^31 if there is no highest."""
    return int(_LOWEST[bucket]), int(min(_HIGHEST[bucket], 2**31))


def split_by_grid(
    groups_N: np.ndarray, keys_N: np.ndarray, buckets_N: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits puzzles so that no grid is on both sides, nor a symmetric copy of one.

    From each bucket, `fraction` of the groups are drawn for validation, at least one if there are two. The bucket of a
    group is that of its first puzzle. A puzzle of another group that has the grid of a validation puzzle is excluded
    from both sides.

    Args:
      groups_N: puzzles with the same number stay together.
      keys_N: `grid_keys` of the solutions.
      buckets_N: bucket of each puzzle.
      fraction: fraction of the groups to draw.
      seed: seed of the draw.

    Returns:
      Row indices for training and row indices for validation.
    """
    _, first, group_N = np.unique(groups_N, return_index=True, return_inverse=True)
    drawn = np.zeros(len(first), bool)
    rng = np.random.default_rng(seed)
    for bucket in np.unique(buckets_N):
        members = np.flatnonzero(buckets_N[first] == bucket)
        n = min(int(np.ceil(fraction * len(members))), len(members) - 1)
        drawn[rng.permutation(members)[:n]] = True
    valid_N = drawn[group_N]
    has_valid_grid_N = np.isin(keys_N, keys_N[valid_N])
    return np.flatnonzero(~has_valid_grid_N), np.flatnonzero(valid_N)
