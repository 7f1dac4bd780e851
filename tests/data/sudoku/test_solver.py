"""The solver and the rating against plain ones, and the compiled cache."""

import subprocess
import sys

import numpy as np
import pytest

from psann_jax.data.sudoku import kernels
from psann_jax.data.sudoku.rules import UNITS_27x9, agrees, has_conflict, is_solved, parse_grid
from psann_jax.data.sudoku.solver import COPIES, check_count, rate, rating_copies, solve, solve_one
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
    """Solutions up to a limit, by trying every digit that the rules allow in the cell with the fewest."""
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


def test_known_puzzles():
    puzzles = grids(WIKIPEDIA, SEVENTEEN, ESCARGOT)
    solutions, counts = solve(puzzles)
    assert counts.tolist() == [1, 1, 1]
    assert is_solved(solutions).all()
    assert agrees(puzzles, solutions).all()
    assert (solutions[0] == parse_grid(WIKIPEDIA_SOLUTION)).all()
    assert (solve_one(puzzles[0]) == solutions[0]).all()


def test_counts_equal_a_plain_search():
    """Of a solved grid, cells are emptied until several solutions come up; clues are moved until none is left."""
    rng = np.random.default_rng(0)
    solution = parse_grid(WIKIPEDIA_SOLUTION)
    puzzles = []
    for n_empty in (0, 20, 40, 48, 52, 54, 56, 58):
        for _ in range(4):
            puzzle = solution.copy()
            puzzle[rng.permutation(81)[:n_empty]] = 0
            puzzles.append(puzzle)
            spoilt = puzzle.copy()
            spoilt[rng.choice(np.flatnonzero(puzzle))] = rng.integers(1, 10)
            puzzles.append(spoilt)
    conflicts = has_conflict(np.stack(puzzles))
    plain = [0 if wrong else count_plainly(p.tolist()) for p, wrong in zip(puzzles, conflicts, strict=True)]
    assert {0, 1, 2} <= set(plain)
    assert solve(np.stack(puzzles))[1].tolist() == plain


def test_a_limit_ends_the_count():
    puzzle = parse_grid(WIKIPEDIA)
    puzzle[:40] = 0
    assert [solve(puzzle[None], limit)[1][0] for limit in (1, 2, 7)] == [1, 2, 7]


def test_no_and_several_solutions_are_named():
    unsolvable = "..9.287..8.6..4..5..3.....46.........2.71345.........23.....5..9..4..8.7..125.3.."
    with pytest.raises(UserError, match=r"^--puzzle: the puzzle has no solution, must have one$"):
        solve_one(parse_grid(unsolvable), "--puzzle")
    with pytest.raises(UserError, match=r"^--puzzle: the puzzle has several solutions, must have one$"):
        solve_one(parse_grid("." * 81), "--puzzle")
    check_count(1, "--puzzle")


def test_ratings():
    puzzles = grids(WIKIPEDIA, SEVENTEEN, ESCARGOT, WIKIPEDIA_SOLUTION)
    ratings = rate(puzzles)
    assert ratings.tolist()[0::3] == [0, 0]  # solved by propagation alone
    assert ratings[2] >= 3
    # By hand: the mean over the copies, each rated alone.
    copies = rating_copies()
    assert copies.cells_x81.shape == (COPIES, 81)
    each = np.zeros(COPIES)
    kernels.rate_all(
        copies.apply(np.repeat(puzzles[2:3], COPIES, 0)),
        np.arange(81)[None],
        np.arange(10, dtype=np.uint8)[None],
        each,
    )
    assert len(set(each)) > 1
    assert ratings[2] == round(each.mean())


def test_what_propagation_solves_does_not_depend_on_how_the_grid_is_turned():
    copies = symmetry(np.random.default_rng(1).random((200, N_DRAWS)))
    assert not rate(copies.apply(np.repeat(grids(WIKIPEDIA), 200, 0))).any()


def test_without_a_folder_for_compiled_code():
    """numba refuses to cache what comes from no file."""
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)
    assert kernels.compiled(scope["double"])(4) == 8


def test_language_models_do_not_import_the_compiler():
    code = (
        "import sys, psann_jax.tasks.lm, psann_jax.data.sudoku.solver, psann_jax.models.sudoku;"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
