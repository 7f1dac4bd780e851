"""Compiled inner loops of the generator; importing this module imports numba, see `solver.import_compiled`.

Random numbers come from a state of one uint64 (splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014), so that a puzzle depends only on its own seed and not on the thread that generates it.
"""

import numpy as np

from psann_jax.data.sudoku.kernels import (
    DIGIT,
    N_BITS,
    branching_cell,
    candidates,
    compiled,
    mean_guesses,
    propagate,
    search,
)
from psann_jax.data.sudoku.rules import N_CELLS

_MAX_REMOVED = 3  # clues that one step of a walk removes
_PATIENCE = 300  # steps of a walk without a harder puzzle before it restarts from a random one


@compiled
def mixed(x: np.uint64) -> np.uint64:
    """Returns a hash of a number: the finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _below(state: np.ndarray, n: int) -> np.int64:
    """Returns a random integer in [0, n)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed(state[0]) >> np.uint64(33)) % np.uint64(n))


@compiled
def _shuffled_cells(state: np.ndarray) -> np.ndarray:
    cells = np.arange(N_CELLS)
    for i in range(N_CELLS - 1, 0, -1):
        j = _below(state, i + 1)
        cells[i], cells[j] = cells[j], cells[i]
    return cells


@compiled
def _random_bit(state: np.ndarray, mask: int) -> np.int64:
    """Returns a random bit of a set of candidates."""
    left = np.int64(mask)
    for _ in range(_below(state, N_BITS[mask])):
        left &= left - 1
    return left & -left


@compiled
def random_grid(state: np.ndarray, stack_82x81: np.ndarray, clues_81: np.ndarray, grid_81: np.ndarray) -> None:
    """Writes a random solved grid that contains the clues.

    Random cells get random candidates; a contradiction after propagation restarts the grid.
    """
    cand, trial = stack_82x81[0], stack_82x81[1]
    done = False
    while not done:
        candidates(clues_81, cand)
        while propagate(cand):
            if branching_cell(cand) < 0:
                done = True
                break
            cell = _below(state, N_CELLS)
            while N_BITS[cand[cell]] == 1:
                cell = _below(state, N_CELLS)
            bit = _random_bit(state, cand[cell])
            trial[:] = cand
            trial[cell] = bit
            if propagate(trial):
                cand[:] = trial
            else:
                cand[cell] &= ~bit
    for cell in range(N_CELLS):
        grid_81[cell] = DIGIT[cand[cell]]


@compiled
def minimise(state: np.ndarray, stack_82x81: np.ndarray, puzzle_81: np.ndarray, preferred_81: np.ndarray) -> None:
    """Removes clues in place while the solution stays unique, in random order, the preferred clues last."""
    found = np.empty(N_CELLS, np.uint8)
    cells = _shuffled_cells(state)
    for preferred in range(2):
        for cell in cells:
            digit = puzzle_81[cell]
            if digit and (preferred_81[cell] > 0) == (preferred == 1):
                puzzle_81[cell] = 0
                candidates(puzzle_81, stack_82x81[0])
                stack_82x81[0, cell] &= ~(1 << (digit - 1))
                if search(stack_82x81, 1, found)[0]:
                    puzzle_81[cell] = digit


@compiled
def _add_clues(state: np.ndarray, puzzle_81: np.ndarray, grid_81: np.ndarray, n: int) -> None:
    """Fills up to n random empty cells from the solution, in place."""
    for cell in _shuffled_cells(state):
        if n == 0:
            return
        if puzzle_81[cell] == 0:
            puzzle_81[cell] = grid_81[cell]
            n -= 1


@compiled
def _neighbour(
    state: np.ndarray, stack_82x81: np.ndarray, puzzle_81: np.ndarray, trial_81: np.ndarray, grid_81: np.ndarray
) -> None:
    """Writes a minimal puzzle that shares most clues with a given one, and its solution, which is different."""
    trial_81[:] = puzzle_81
    to_remove = 1 + _below(state, _MAX_REMOVED)
    for cell in _shuffled_cells(state):
        if trial_81[cell] and to_remove:
            trial_81[cell] = 0
            to_remove -= 1
    random_grid(state, stack_82x81, trial_81, grid_81)
    shared = trial_81.copy()
    trial_81[:] = grid_81
    minimise(state, stack_82x81, trial_81, shared)


@compiled
def _ease(
    state: np.ndarray,
    stack_82x81: np.ndarray,
    copies: tuple[np.ndarray, np.ndarray],
    puzzle_81: np.ndarray,
    grid_81: np.ndarray,
    rating: float,
    highest: int,
) -> float:
    """Adds clues in place until the rating is at most `highest`; returns the new rating."""
    while np.rint(rating) > highest:
        _add_clues(state, puzzle_81, grid_81, 1)
        rating = mean_guesses(puzzle_81, copies[0], copies[1], stack_82x81)
    return rating


@compiled
def _walk(
    seed: int,
    bounds: tuple[int, int, int],
    copies: tuple[np.ndarray, np.ndarray],
    stack_82x81: np.ndarray,
    puzzles_Mx81: np.ndarray,
    grids_Mx81: np.ndarray,
    ratings_M: np.ndarray,
) -> None:
    """Fills all rows with puzzles of one lineage; see `make_puzzles`."""
    lowest, highest, extra_clues = bounds
    state = np.full(1, seed, np.uint64)
    empty = np.zeros(N_CELLS, np.uint8)
    puzzle, grid, trial, trial_grid, eased = empty.copy(), empty.copy(), empty.copy(), empty.copy(), empty.copy()
    n_made, n_failed, rating = 0, _PATIENCE, 0.0
    while n_made < len(puzzles_Mx81):
        if n_failed >= _PATIENCE:
            random_grid(state, stack_82x81, empty, trial_grid)
            trial[:] = trial_grid
            minimise(state, stack_82x81, trial, empty)
            rating, n_failed = 0.0, 0
        else:
            _neighbour(state, stack_82x81, puzzle, trial, trial_grid)
        trial_rating = mean_guesses(trial, copies[0], copies[1], stack_82x81)
        n_failed += 1
        if trial_rating < min(rating, lowest) or (n_failed > 1 and np.all(trial == puzzle)):
            continue
        if trial_rating > rating or np.rint(trial_rating) >= lowest:
            n_failed = 1
        rating = trial_rating
        puzzle[:] = eased[:] = trial
        grid[:] = trial_grid
        eased_rating = np.rint(_ease(state, stack_82x81, copies, eased, grid, trial_rating, highest))
        if eased_rating >= lowest:
            if lowest == 0:
                _add_clues(state, eased, grid, _below(state, extra_clues + 1))
            puzzles_Mx81[n_made], grids_Mx81[n_made], ratings_M[n_made] = eased, grid, eased_rating
            n_made += 1


@compiled
def make_puzzles(
    seeds_N: np.ndarray,
    bounds: tuple[int, int, int],
    copies: tuple[np.ndarray, np.ndarray],
    puzzles_NxMx81: np.ndarray,
    grids_NxMx81: np.ndarray,
    ratings_NxM: np.ndarray,
) -> None:
    """Writes, for each seed, M puzzles with one solution each, their solved grids and their ratings.

    The puzzles of a seed are a lineage. It starts with a random minimal puzzle of a random grid and moves to neighbours
    that are at least as hard, or hard enough. When it makes no progress, it restarts from a new random puzzle. A puzzle
    that is too hard gets clues back until it is not.

    Args:
      seeds_N: one seed per lineage.
      bounds: lowest rating, highest rating, and the most clues to add beyond what is needed if the lowest is 0.
      copies: cells and digits of `rating_copies`.
      puzzles_NxMx81: output: puzzles.
      grids_NxMx81: output: their solutions.
      ratings_NxM: output: their ratings.
    """
    stack = np.empty((N_CELLS + 1, N_CELLS), np.uint16)
    for n in range(len(seeds_N)):
        _walk(seeds_N[n], bounds, copies, stack, puzzles_NxMx81[n], grids_NxMx81[n], ratings_NxM[n])


@compiled
def grid_keys(grids_Nx81: np.ndarray, keys_N: np.ndarray) -> None:
    """Writes a number for each solved grid that is the same for all its symmetric copies.

    Two lines of a grid define a permutation of the digits, and the lengths of its cycles are the same in every
    symmetric copy. The key adds their hashes over pairs of lines in the same band, then over bands, rows and columns,
    so that it does not depend on any order.
    """
    for n in range(len(grids_Nx81)):
        cells_9x9 = grids_Nx81[n].reshape(9, 9)
        keys_N[n] = mixed(_lines_key(cells_9x9) + _lines_key(cells_9x9.T.copy()))


@compiled
def _lines_key(lines_9x9: np.ndarray) -> np.uint64:
    key = np.uint64(0)
    for band in range(3):
        band_key = np.uint64(0)
        for line in range(3 * band, 3 * band + 3):
            near, far = np.uint64(0), np.uint64(0)
            for other in range(9):
                if other // 3 != band:
                    far += mixed(_cycles(lines_9x9[line], lines_9x9[other]))
                elif other != line:
                    near += mixed(_cycles(lines_9x9[line], lines_9x9[other]))
            band_key += mixed(near + mixed(far))
        key += mixed(band_key)
    return mixed(key)


@compiled
def _cycles(line_9: np.ndarray, other_9: np.ndarray) -> np.uint64:
    """Returns the cycle lengths of the permutation of digits from one line to another, as a sum of powers of 16."""
    image = np.empty(10, np.int64)
    for i in range(9):
        image[line_9[i]] = other_9[i]
    lengths = np.uint64(0)
    for start in range(1, 10):
        digit, length = start, 0
        while image[digit]:
            following = image[digit]
            image[digit] = 0
            digit = following
            length += 1
        if length:
            lengths += np.uint64(1) << np.uint64(4 * (length - 1))
    return lengths
