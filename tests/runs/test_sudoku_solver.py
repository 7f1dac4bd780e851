"""The search for solutions, with a stand-in network that finds them at given iterations."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import SudokuConfig
from psann_jax.data.sudoku.rules import is_solved
from psann_jax.models.network import build
from psann_jax.models.sudoku import Sudoku
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.runs.sudoku_solver import attention_weights, is_valid, marks_up_to, solve, trace

SOLUTION = np.array([(3 * (row % 3) + row // 3 + column) % 9 + 1 for row in range(9) for column in range(9)], np.uint8)
MESH = make_mesh(ONE_DEVICE, all_devices=False)
REMEMBERED = 5  # iterations for which the network below keeps a solution


class Oracle:
    """Fills a puzzle of n empty cells with `SOLUTION` in iterations n .. n + REMEMBERED - 1, otherwise with ones."""

    def start(self, puzzles):
        n_empty = jnp.sum(puzzles == 0, axis=1, dtype=jnp.float32)
        return jnp.stack([n_empty, jnp.zeros_like(n_empty)], -1)[:, None], jnp.zeros((*puzzles.shape, 9))

    def iterate(self, grid):
        (state, _), right = grid, jax.nn.one_hot(SOLUTION - 1, 9)
        state = state.at[..., 1].add(1)
        n_empty, age = state[:, 0, 0], state[:, 0, 1]
        knows = (age >= n_empty) & (age < n_empty + REMEMBERED)
        logits = jnp.where(knows[:, None, None], right, jax.nn.one_hot(jnp.zeros(81, jnp.int32), 9))
        return (state, logits), logits


NETWORK = SimpleNamespace(merge=lambda params: Oracle(), config=SimpleNamespace(iterations=16))
RUN = SimpleNamespace(network=NETWORK, params={}, mesh=MESH)


def puzzles_with(counts):
    """Puzzles with these numbers of empty cells, none of which is a one, so that filling in ones is never valid."""
    cells = np.flatnonzero(SOLUTION != 1)
    grids = np.repeat(SOLUTION[None], len(counts), 0)
    for grid, n in zip(grids, counts, strict=True):
        grid[cells[:n]] = 0
    return grids


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 8))
def test_every_puzzle_is_solved_at_its_own_iteration(counts, batch_size):
    found = solve(RUN, puzzles_with(counts), iterations=32, batch_size=batch_size)
    assert found.first_N.tolist() == [n if n <= 32 else 0 for n in counts]
    assert found.marks_M == (16, 32)
    assert found.valid_NxM.tolist() == [[n <= 16, n <= 32] for n in counts]
    assert ((found.grids_Nx81 == SOLUTION).all(axis=1) == (found.first_N > 0)).all()


def test_without_stopping_lost_solutions_show():
    found = solve(RUN, puzzles_with([3, 14, 30, 40]), iterations=32, stop_at_valid=False, batch_size=3)
    assert found.first_N.tolist() == [3, 14, 30, 0]
    assert found.valid_NxM.tolist() == [[False, False], [True, False], [False, True], [False, False]]
    assert found.found_NxM.tolist() == [[True, True], [True, True], [False, True], [False, False]]
    assert (found.grids_Nx81[:3] == SOLUTION).all(), "the first valid grid is the answer"


def test_an_empty_list_of_puzzles():
    found = solve(RUN, np.zeros((0, 81), np.uint8), iterations=40)
    assert found.grids_Nx81.shape == (0, 81)
    assert found.valid_NxM.shape == (0, 3)


@pytest.mark.parametrize(("n", "marks"), [(1, (1,)), (6, (6,)), (7, (6, 7)), (24, (6, 12, 24))])
def test_marks(n, marks):
    assert marks_up_to(n, 6) == marks


def test_is_valid_checks_the_rules():
    swapped = SOLUTION.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    grids = np.stack([SOLUTION, swapped, np.ones(81, np.uint8), SOLUTION.reshape(9, 9).T.ravel()])
    assert is_valid(jnp.asarray(grids)).tolist() == is_solved(grids).tolist() == [True, False, False, True]


def test_a_trace_ends_at_the_first_valid_grid():
    steps = list(trace(RUN, puzzles_with([6])[0], iterations=20))
    assert len(steps) == 6
    assert [(grid == SOLUTION).all() for _, grid in steps] == [False] * 5 + [True]
    assert len(list(trace(RUN, puzzles_with([6])[0], iterations=3))) == 3


def test_a_real_network_iterates_as_in_training():
    """Grids of the search and of the trace are those of `Sudoku.run`; attention weights are a distribution."""
    config = SudokuConfig(d_model=16, n_layers=2, n_heads=2, d_mlp=16, positional_encoding="rope2d")
    network = build(config)
    run = SimpleNamespace(network=network, params=network.init(jax.random.key(0)), mesh=MESH)
    puzzles = puzzles_with([20, 30, 40])
    model: Sudoku = network.merge(run.params)
    logits = model.run(jnp.asarray(puzzles), lambda x: x, iterations=7)
    expected = np.where(puzzles == 0, 1 + np.asarray(logits[-1]).argmax(-1), puzzles)
    np.testing.assert_array_equal(solve(run, puzzles, iterations=7, batch_size=2).grids_Nx81, expected)
    *_, (probabilities, grid) = trace(run, puzzles[1], iterations=7)
    np.testing.assert_array_equal(grid, expected[1])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits[-1, 1]), atol=1e-5)
    weights = attention_weights(run, puzzles[1], iteration=3)
    assert weights.shape == (2, 2, 81, 81)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.allclose(weights, attention_weights(run, puzzles[1], iteration=1), atol=1e-3)
