"""Puzzles made to measure: any number of each bucket of ratings, each with one solution."""

from typing import Any

import numpy as np
from tqdm import tqdm

from psann_jax.config.sudoku import BUCKETS
from psann_jax.data.sudoku.puzzles import Puzzles, bucket_bounds, joined
from psann_jax.data.sudoku.solver import in_threads, rating_copies, slices
from psann_jax.utils.extras import require_extra

# Puzzles that are walked to from one another: looking for hard ones is slow, and one is near the next.
_PER_LINEAGE = (1, 1, 1, 8, 8)
# Lineages that a thread makes between two steps of the progress bar.
_AT_ONCE = (256, 64, 32, 1, 1)


def generate(
    counts: tuple[int, ...], *, seed: int, extra_clues: int = 0, progress: bool = True
) -> tuple[Puzzles, np.ndarray]:
    """Makes puzzles; the same for the same arguments, on any number of cores.

    Args:
      counts: of each bucket.
      seed: of all that is random.
      extra_clues: puzzles of rating 0 get 0 to so many clues more than they need.
      progress: whether there is a bar, on stderr where that is a terminal.

    Returns:
      The puzzles, bucket after bucket, and the lineage of each (N,): those of one lineage share clues and must not be
      divided between training and validation.
    """
    parts, lineages, n_lineages = [], [], 0
    with tqdm(total=sum(counts), unit=" puzzles", desc="making", disable=None if progress else True) as bar:
        for bucket, count in enumerate(counts):
            size = _PER_LINEAGE[bucket]
            n = -(-count // size)
            bar.set_postfix(rating=BUCKETS[bucket])
            parts.append(_bucket(bucket, n, seed, extra_clues, bar).take(np.arange(count)))
            lineages.append(n_lineages + np.arange(count) // size)
            n_lineages += n
    return joined(parts), np.concatenate(lineages)


def _bucket(bucket: int, n: int, seed: int, extra_clues: int, bar: "tqdm[None]") -> Puzzles:
    """The puzzles of n lineages of a bucket."""
    kernels = _kernels()
    size = _PER_LINEAGE[bucket]
    # Seeds by position, so that more puzzles of a bucket begin with the fewer.
    seeds_N = np.random.SeedSequence([seed, bucket]).generate_state(n, np.uint64)
    puzzles, solutions = (np.zeros((n, size, 81), np.uint8) for _ in range(2))
    ratings = np.zeros((n, size), np.int64)
    copies = rating_copies()
    bounds = (*bucket_bounds(bucket), extra_clues)

    def part(rows: slice) -> None:
        kernels.make_puzzles(
            seeds_N[rows],
            bounds,
            (copies.cells_x81, copies.digits_x10),
            puzzles[rows],
            solutions[rows],
            ratings[rows],
        )

    parts = slices(n, _AT_ONCE[bucket])
    for rows, _ in zip(parts, in_threads(part, parts), strict=True):
        bar.update((rows.stop - rows.start) * size)
    return Puzzles(puzzles.reshape(-1, 81), solutions.reshape(-1, 81), ratings.ravel().astype(np.float64))


def grid_keys(solutions_Nx81: np.ndarray) -> np.ndarray:
    """Numbers (N,) uint64 that are the same for all grids that the symmetries turn into each other.

    Grids that are not symmetric to each other have different ones, but for rare coincidences.
    """
    keys_N = np.zeros(len(solutions_Nx81), np.uint64)
    _kernels().grid_keys(solutions_Nx81, keys_N)
    return keys_N


def _kernels() -> Any:
    require_extra("Sudoku puzzles", "numba")
    from psann_jax.data.sudoku import generator_kernels

    return generator_kernels
