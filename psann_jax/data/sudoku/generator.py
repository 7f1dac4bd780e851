"""Generated puzzles: any number in each bucket of ratings, each with exactly one solution."""

import numpy as np
from tqdm import tqdm

from psann_jax.config.sudoku import BUCKETS
from psann_jax.data.sudoku.puzzles import Puzzles, bucket_bounds, concatenate
from psann_jax.data.sudoku.solver import import_compiled, in_threads, rating_copies, slices

# Puzzles in a lineage, per bucket. Hard puzzles are rare, but often close to each other, so each is searched from the
# one before it.
_PER_LINEAGE = (1, 1, 1, 8, 8)
# Lineages that a thread generates between two updates of the progress bar, per bucket.
_CHUNK = (256, 64, 32, 1, 1)


def generate(
    counts: tuple[int, ...], *, seed: int, extra_clues: int = 0, progress: bool = True
) -> tuple[Puzzles, np.ndarray]:
    """Generates puzzles, the same for the same arguments on any number of cores.

    Args:
      counts: number of puzzles in each bucket.
      seed: seed of everything random.
      extra_clues: puzzles of rating 0 get a random number of clues more than they need, up to this many.
      progress: show a progress bar on stderr if that is a terminal.

    Returns:
      The puzzles, bucket after bucket, and the lineage (N,) of each. Puzzles of one lineage share clues, so they must
      not be split between training and validation.
    """
    parts, lineages, n_lineages = [], [], 0
    with tqdm(total=sum(counts), unit=" puzzles", desc="generating", disable=None if progress else True) as bar:
        for bucket, count in enumerate(counts):
            size = _PER_LINEAGE[bucket]
            n = -(-count // size)
            bar.set_postfix(rating=BUCKETS[bucket])
            parts.append(_generate_bucket(bucket, n, seed, extra_clues, bar).take(np.arange(count)))
            lineages.append(n_lineages + np.arange(count) // size)
            n_lineages += n
    return concatenate(parts), np.concatenate(lineages)


def _generate_bucket(bucket: int, n: int, seed: int, extra_clues: int, bar: "tqdm[None]") -> Puzzles:
    """Generates n lineages of puzzles of a bucket."""
    kernels = import_compiled("generator_kernels")
    size = _PER_LINEAGE[bucket]
    # One seed per lineage, by its position: a larger set of a bucket begins with the puzzles of a smaller one.
    seeds_N = np.random.SeedSequence([seed, bucket]).generate_state(n, np.uint64)
    puzzles, solutions = (np.zeros((n, size, 81), np.uint8) for _ in range(2))
    ratings = np.zeros((n, size), np.int64)
    copies = rating_copies()
    bounds = (*bucket_bounds(bucket), extra_clues)

    def run(rows: slice) -> None:
        kernels.make_puzzles(
            seeds_N[rows],
            bounds,
            (copies.cells_x81, copies.digits_x10),
            puzzles[rows],
            solutions[rows],
            ratings[rows],
        )

    parts = slices(n, _CHUNK[bucket])
    for rows, _ in zip(parts, in_threads(run, parts), strict=True):
        bar.update((rows.stop - rows.start) * size)
    return Puzzles(puzzles.reshape(-1, 81), solutions.reshape(-1, 81), ratings.ravel().astype(np.float64))


def grid_keys(solutions_Nx81: np.ndarray) -> np.ndarray:
    """Returns a number (N,) uint64 for each grid that is the same for all its symmetric copies.

    Grids that are not symmetric to each other have different keys, except for rare collisions.
    """
    keys_N = np.zeros(len(solutions_Nx81), np.uint64)
    import_compiled("generator_kernels").grid_keys(solutions_Nx81, keys_N)
    return keys_N
