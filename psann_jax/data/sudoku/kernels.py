"""Compiled inner loops of the solver, which the generator uses too.

Importing this module imports numba, which is optional and takes a second: use `solver.import_compiled`.

The state of a grid is 81 sets of candidates of 9 bits each, bit d - 1 for digit d. Propagation applies these rules
until nothing changes: naked singles (a cell with one candidate), hidden singles (a digit with one cell in a row, column
or box) and locked candidates (a digit whose cells in a box lie in one line, or whose cells in a line lie in one box).
The rules only remove candidates that no solution has. Their result therefore depends neither on their order nor on
which symmetric copy of a puzzle they are applied to, and a puzzle that they solve needs no guesses.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from psann_jax.data.sudoku.rules import N_CELLS, UNITS_27x9

ALL = np.uint16(0b111111111)
_UNITS_27x9 = UNITS_27x9.astype(np.int64)
N_BITS = np.array([bin(mask).count("1") for mask in range(512)], np.int64)
DIGIT = np.array([mask.bit_length() for mask in range(512)], np.uint8)  # the digit of the highest bit


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function at its first call, and caches the result on disk if a directory for it is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no such directory
        return numba.njit(nogil=True)(function)


def _lines_of_three() -> np.ndarray:
    """Returns the cells of the 3 bands and the 3 stacks, in parts of three: (band or stack, line, box, cell)."""
    cells_9x9 = np.arange(N_CELLS).reshape(9, 9)
    return np.stack([grid[3 * i : 3 * i + 3].reshape(3, 3, 3) for grid in (cells_9x9, cells_9x9.T) for i in range(3)])


_PARTS_6x3x3x3 = _lines_of_three().astype(np.int64)


@compiled
def _singles(cand: np.ndarray) -> int:
    """Applies naked and hidden singles once; returns -1 at a contradiction, 1 if anything changed, else 0."""
    changed = 0
    for u in range(27):
        once, twice, naked = np.uint16(0), np.uint16(0), np.uint16(0)
        for i in range(9):
            c = cand[_UNITS_27x9[u, i]]
            twice |= once & c
            once |= c
            if c & (c - np.uint16(1)) == 0:
                if c == 0 or naked & c:
                    return -1
                naked |= c
        if once != ALL:
            return -1
        hidden = once & ~twice
        if naked == ALL:
            continue
        for i in range(9):
            cell = _UNITS_27x9[u, i]
            c = cand[cell]
            if c & (c - np.uint16(1)) == 0:
                continue
            alone = c & hidden
            if alone:
                if alone & (alone - np.uint16(1)):
                    return -1
                new = alone
            else:
                new = c & ~naked
            if new != c:
                cand[cell] = new
                changed = 1
    return changed


@compiled
def _locked(cand: np.ndarray) -> int:
    """Applies locked candidates once, for all digits at a time; returns 1 if anything changed, else 0.

    In a band, a digit is in a different row of each box: one of six permutations. It stays a candidate where row i and
    box j intersect if the other two rows can hold it in the other two boxes.
    """
    changed = 0
    held = np.empty((3, 3), np.uint16)
    for part in range(6):
        for i in range(3):
            for j in range(3):
                a, b, c = _PARTS_6x3x3x3[part, i, j]
                held[i, j] = cand[a] | cand[b] | cand[c]
        for i in range(3):
            k, m = (i + 1) % 3, (i + 2) % 3
            for j in range(3):
                p, q = (j + 1) % 3, (j + 2) % 3
                possible = (held[k, p] & held[m, q]) | (held[k, q] & held[m, p])
                if held[i, j] & ~possible:
                    changed = 1
                    for n in range(3):
                        cand[_PARTS_6x3x3x3[part, i, j, n]] &= possible
    return changed


@compiled
def propagate(cand: np.ndarray) -> bool:
    """Removes candidates in place until no rule removes more; returns False at a contradiction."""
    while True:
        changed = _singles(cand)
        while changed == 1:
            changed = _singles(cand)
        if changed < 0:
            return False
        if _locked(cand) == 0:
            return True


@compiled
def branching_cell(cand: np.ndarray) -> int:
    """Returns the first cell with the fewest candidates of those with more than one; -1 if there is none."""
    best, fewest = -1, 10
    for cell in range(N_CELLS):
        n = N_BITS[cand[cell]]
        if 1 < n < fewest:
            best, fewest = cell, n
            if n == 2:
                break
    return best


@compiled
def search(stack_82x81: np.ndarray, limit: int, solution_81: np.ndarray) -> tuple[int, int]:
    """Counts solutions by propagation and binary guesses: a cell has its lowest candidate, or does not.

    Args:
      stack_82x81: work space, uint16; row 0 holds the initial candidates.
      limit: number of solutions after which to stop.
      solution_81: output for the first solution.

    Returns:
      The number of solutions found, at most `limit`, and the number of guesses.
    """
    solutions, guesses, depth = 0, 0, 0
    while depth >= 0:
        cand = stack_82x81[depth]
        if not propagate(cand):
            depth -= 1
            continue
        cell = branching_cell(cand)
        if cell < 0:
            if solutions == 0:
                for i in range(N_CELLS):
                    solution_81[i] = DIGIT[cand[i]]
            solutions += 1
            if solutions == limit:
                break
            depth -= 1
            continue
        guesses += 1
        guess = cand[cell] & -cand[cell]
        stack_82x81[depth + 1] = cand
        stack_82x81[depth + 1, cell] = guess
        cand[cell] &= ~guess
        depth += 1
    return solutions, guesses


@compiled
def candidates(puzzle_81: np.ndarray, cand: np.ndarray) -> None:
    """Writes the initial candidates of a puzzle: one for a clue, all for an empty cell."""
    for cell in range(N_CELLS):
        cand[cell] = np.uint16(1) << np.uint16(puzzle_81[cell] - 1) if puzzle_81[cell] else ALL


@compiled
def solve_all(puzzles_Nx81: np.ndarray, limit: int, solutions_Nx81: np.ndarray, counts_N: np.ndarray) -> None:
    """Writes the first solution of every puzzle and its number of solutions, at most `limit`."""
    stack = np.empty((N_CELLS + 1, N_CELLS), np.uint16)
    for n in range(len(puzzles_Nx81)):
        candidates(puzzles_Nx81[n], stack[0])
        counts_N[n] = search(stack, limit, solutions_Nx81[n])[0]


@compiled
def mean_guesses(
    puzzle_81: np.ndarray, cells_Kx81: np.ndarray, digits_Kx10: np.ndarray, stack_82x81: np.ndarray
) -> float:
    """Returns the number of guesses up to the first solution, averaged over symmetric copies of a puzzle."""
    copy, solution = np.empty(N_CELLS, np.uint8), np.empty(N_CELLS, np.uint8)
    total = 0
    for k in range(len(cells_Kx81)):
        for cell in range(N_CELLS):
            copy[cell] = digits_Kx10[k, puzzle_81[cells_Kx81[k, cell]]]
        candidates(copy, stack_82x81[0])
        guesses = search(stack_82x81, 1, solution)[1]
        if guesses == 0:
            return 0.0  # then no copy needs a guess
        total += guesses
    return total / len(cells_Kx81)


@compiled
def rate_all(puzzles_Nx81: np.ndarray, cells_Kx81: np.ndarray, digits_Kx10: np.ndarray, ratings_N: np.ndarray) -> None:
    """Writes the `mean_guesses` of every puzzle."""
    stack = np.empty((N_CELLS + 1, N_CELLS), np.uint16)
    for n in range(len(puzzles_Nx81)):
        ratings_N[n] = mean_guesses(puzzles_Nx81[n], cells_Kx81, digits_Kx10, stack)
