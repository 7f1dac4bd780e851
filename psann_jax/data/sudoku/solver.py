"""Solutions and ratings of puzzles, computed on all cores.

A rating is the number of guesses that are needed beyond propagation (`kernels`) on the way to the first solution,
averaged over symmetric copies of the puzzle and rounded. It is this project's own measure: the ratings of other
collections come from other solvers.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np

from psann_jax.data.sudoku.symmetry import N_DRAWS, Symmetry, symmetry
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

N_COPIES = 8  # symmetric copies that a rating is averaged over
_COPY_SEED = 20_001
_CHUNK = 256  # puzzles that a thread takes at a time

T = TypeVar("T")


def solve(puzzles_Nx81: np.ndarray, limit: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first solution of each puzzle and the number of its solutions, counted up to `limit`.

    Returns:
      Solutions (N, 81) uint8, zeros where there is none, and counts (N,) int64.
    """
    kernels = import_compiled("kernels")
    solutions_Nx81 = np.zeros(puzzles_Nx81.shape, np.uint8)
    counts_N = np.zeros(len(puzzles_Nx81), np.int64)

    def run(rows: slice) -> None:
        kernels.solve_all(puzzles_Nx81[rows], limit, solutions_Nx81[rows], counts_N[rows])

    list(in_threads(run, slices(len(puzzles_Nx81), _CHUNK)))
    return solutions_Nx81, counts_N


def solve_one(puzzle_81: np.ndarray, where: str = "puzzle") -> np.ndarray:
    """Returns the only solution (81,) of a puzzle.

    Args:
      puzzle_81: digits, 0 for empty cells, as from `parse_grid`.
      where: what to name in an error: a flag, or a file and a line.

    Raises:
      UserError: there is no solution, or more than one.
    """
    solutions_1x81, counts_1 = solve(puzzle_81[None])
    check_unique(int(counts_1[0]), where)
    return solutions_1x81[0]


def check_unique(count: int, where: str) -> None:
    """Raises UserError unless the number of solutions is 1."""
    if count != 1:
        raise UserError(f"{where}: the puzzle has {'several solutions' if count else 'no solution'}, must have one")


def rate(puzzles_Nx81: np.ndarray) -> np.ndarray:
    """Returns the ratings (N,) int64 of puzzles that have a solution; 0 if propagation alone solves them."""
    kernels, copies = import_compiled("kernels"), rating_copies()
    means_N = np.zeros(len(puzzles_Nx81))

    def run(rows: slice) -> None:
        kernels.rate_all(puzzles_Nx81[rows], copies.cells_x81, copies.digits_x10, means_N[rows])

    list(in_threads(run, slices(len(puzzles_Nx81), _CHUNK)))
    return np.rint(means_N).astype(np.int64)


def rating_copies() -> Symmetry:
    """Returns the symmetries that a rating is averaged over, the same for every puzzle."""
    return symmetry(np.random.default_rng(_COPY_SEED).random((N_COPIES, N_DRAWS)))


def slices(n: int, size: int) -> list[slice]:
    """Returns the rows 0 to n - 1 in parts of at most `size`."""
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def in_threads(run: Callable[[slice], T], parts: list[slice]) -> Iterator[T]:
    """Yields run(rows) for each part in order, computed by one thread per core; the kernels release the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run, parts)


def import_compiled(module: Literal["kernels", "generator_kernels"]) -> Any:
    """Imports a module of compiled functions, and with it numba, only where puzzles are solved or generated.

    Raises:
      UserError: numba is not installed.
    """
    require_extra("Sudoku puzzles", "numba")
    return importlib.import_module(f"psann_jax.data.sudoku.{module}")
