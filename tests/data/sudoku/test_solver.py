"""The solver and the ratings against plain implementations, and when numba is imported."""

import subprocess
import sys

import numpy as np
import pytest

from psann_jax.data.sudoku import kernels
from psann_jax.data.sudoku.rules import UNITS_27x9, has_clues_of, has_conflict, is_solved, parse_grid
from psann_jax.data.sudoku.solver import N_COPIES, check_unique, rate, rating_copies, solve, solve_one
from psann_jax.data.sudoku.symmetry import N_DRAWS, symmetry
from psann_jax.utils.errors import UserError

# Public puzzles: the example of Wikipedia's article, two of 17 clues, and "AI Escargot" by Arto Inkala.
WIKIPEDIA = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
WIKIPEDIA_SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
SEVENTEEN = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
ESCARGOT = "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3.."


def grids(*texts):
    return np.stack([parse_grid(text) for text in texts])


PEERS = [sorted({c for u in UNITS_27x9.tolist() if cell in u for c in u}) for cell in range(81)]


def count_plainly(grid, limit=2):
    """Counts solutions up to a limit by trying all allowed digits in the cell that has the fewest."""
    options = {cell: set(range(1, 10)) - {grid[c] for c in PEERS[cell]} for cell in range(81) if grid[cell] == 0}
    if not options:
        return 1
    cell = min(options, key=lambda cell: len(options[cell]))
    total = 0
    for digit in options[cell]:
        if total < limit:
            grid[cell] = digit
            total += count_plainly(grid, limit - total)
            grid[cell] = 0
    return total


def test_known_puzzles_are_solved():
    puzzles = grids(WIKIPEDIA, SEVENTEEN, ESCARGOT)
    solutions, counts = solve(puzzles)
    assert counts.tolist() == [1, 1, 1]
    assert is_solved(solutions).all()
    assert has_clues_of(solutions, puzzles).all()
    assert (solutions[0] == parse_grid(WIKIPEDIA_SOLUTION)).all()
    assert (solve_one(puzzles[0]) == solutions[0]).all()


def test_counts_equal_a_plain_search():
    """Covers puzzles with many empty cells, which have several solutions, and with a wrong clue, which have none."""
    rng = np.random.default_rng(0)
    solution = parse_grid(WIKIPEDIA_SOLUTION)
    puzzles = []
    for n_empty in (0, 20, 40, 48, 52, 54, 56, 58):
        for _ in range(4):
            puzzle = solution.copy()
            puzzle[rng.permutation(81)[:n_empty]] = 0
            puzzles.append(puzzle)
            changed = puzzle.copy()
            changed[rng.choice(np.flatnonzero(puzzle))] = rng.integers(1, 10)
            puzzles.append(changed)
    conflicts = has_conflict(np.stack(puzzles))
    plain = [0 if wrong else count_plainly(p.tolist()) for p, wrong in zip(puzzles, conflicts, strict=True)]
    assert {0, 1, 2} <= set(plain)
    assert solve(np.stack(puzzles))[1].tolist() == plain


def test_counting_stops_at_the_limit():
    puzzle = parse_grid(WIKIPEDIA)
    puzzle[:40] = 0
    assert [solve(puzzle[None], limit)[1][0] for limit in (1, 2, 7)] == [1, 2, 7]


def test_puzzles_without_a_unique_solution_are_refused():
    unsolvable = "..9.287..8.6..4..5..3.....46.........2.71345.........23.....5..9..4..8.7..125.3.."
    with pytest.raises(UserError, match=r"^--puzzle: the puzzle has no solution, must have one$"):
        solve_one(parse_grid(unsolvable), "--puzzle")
    with pytest.raises(UserError, match=r"^--puzzle: the puzzle has several solutions, must have one$"):
        solve_one(parse_grid("." * 81), "--puzzle")
    check_unique(1, "--puzzle")


def test_a_rating_is_the_mean_number_of_guesses():
    puzzles = grids(WIKIPEDIA, SEVENTEEN, ESCARGOT, WIKIPEDIA_SOLUTION)
    ratings = rate(puzzles)
    assert ratings.tolist()[0::3] == [0, 0]  # solved by propagation alone
    assert ratings[2] >= 3
    # The mean over the copies, each rated alone.
    copies = rating_copies()
    assert copies.cells_x81.shape == (N_COPIES, 81)
    each = np.zeros(N_COPIES)
    kernels.rate_all(
        copies.apply(np.repeat(puzzles[2:3], N_COPIES, 0)),
        np.arange(81)[None],
        np.arange(10, dtype=np.uint8)[None],
        each,
    )
    assert len(set(each)) > 1
    assert ratings[2] == round(each.mean())


def test_propagation_solves_all_symmetric_copies_or_none():
    copies = symmetry(np.random.default_rng(1).random((200, N_DRAWS)))
    assert not rate(copies.apply(np.repeat(grids(WIKIPEDIA), 200, 0))).any()


def test_functions_compile_without_a_cache_directory():
    """numba cannot cache a function that is not defined in a file."""
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)
    assert kernels.compiled(scope["double"])(4) == 8


def test_numba_is_imported_only_when_needed():
    code = (
        "import sys, psann_jax.tasks.lm, psann_jax.data.sudoku.solver, psann_jax.models.sudoku;"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
