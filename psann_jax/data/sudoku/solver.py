"""Solutions and ratings of puzzles, on all cores.

A rating is the number of guesses that remain after propagation (`kernels`), on the way to the first solution,
averaged over symmetric copies and rounded. It is this project's own: other collections count with other solvers.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from psann_jax.data.sudoku.symmetry import N_DRAWS, Symmetry, symmetry
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

COPIES = 8  # that a rating is averaged over
_COPY_SEED = 20_001
_AT_ONCE = 256  # puzzles that a thread takes at a time

T = TypeVar("T")


def solve(puzzles_Nx81: np.ndarray, limit: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The first solution of each puzzle and the number of its solutions, counted up to `limit`.

    Returns:
      (N, 81) uint8, zeros where there is no solution; (N,) int64.
    """
    kernels = _kernels()
    solutions_Nx81 = np.zeros(puzzles_Nx81.shape, np.uint8)
    counts_N = np.zeros(len(puzzles_Nx81), np.int64)

    def part(rows: slice) -> None:
        kernels.solve_all(puzzles_Nx81[rows], limit, solutions_Nx81[rows], counts_N[rows])

    list(in_threads(part, slices(len(puzzles_Nx81), _AT_ONCE)))
    return solutions_Nx81, counts_N


def solve_one(puzzle_81: np.ndarray, where: str = "puzzle") -> np.ndarray:
    """The solution (81,) of a puzzle that has exactly one.

    Args:
      puzzle_81: from `parse_grid`.
      where: what to name in an error.

    Raises:
      UserError: no solution, or several.
    """
    solutions_1x81, counts_1 = solve(puzzle_81[None])
    check_count(int(counts_1[0]), where)
    return solutions_1x81[0]


def check_count(count: int, where: str) -> None:
    """Raises UserError unless a puzzle has one solution."""
    if count != 1:
        raise UserError(f"{where}: the puzzle has {'several solutions' if count else 'no solution'}, must have one")


def rate(puzzles_Nx81: np.ndarray) -> np.ndarray:
    """The ratings (N,) int64 of puzzles that have a solution; 0: propagation alone solves it."""
    kernels, copies = _kernels(), rating_copies()
    means_N = np.zeros(len(puzzles_Nx81))

    def part(rows: slice) -> None:
        kernels.rate_all(puzzles_Nx81[rows], copies.cells_x81, copies.digits_x10, means_N[rows])

    list(in_threads(part, slices(len(puzzles_Nx81), _AT_ONCE)))
    return np.rint(means_N).astype(np.int64)


def rating_copies() -> Symmetry:
    """The symmetric copies of a puzzle that its rating is averaged over, the same for every puzzle."""
    return symmetry(np.random.default_rng(_COPY_SEED).random((COPIES, N_DRAWS)))


def slices(n: int, size: int) -> list[slice]:
    """Rows 0 .. n - 1 in parts of at most `size`."""
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def in_threads(part: Callable[[slice], T], parts: list[slice]) -> Iterator[T]:
    """part(rows) of every part in order, in as many threads as there are cores; the kernels let them run at once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(part, parts)


def _kernels() -> Any:
    require_extra("Sudoku puzzles", "numba")
    from psann_jax.data.sudoku import kernels

    return kernels
