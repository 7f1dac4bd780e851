"""Puzzles over many iterations, on hand-made sequences of grids; spectral radii against eigenvalues of Jacobians."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigs

from psann_jax.config import SudokuConfig
from psann_jax.data.sudoku.puzzles import Puzzles
from psann_jax.models.network import build
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.plots.sudoku_stability import draw_stability
from psann_jax.runs.sudoku_stability import (
    Trajectories,
    follow,
    radii_of_groups,
    spectral_radii,
    spectral_radius,
    summarise,
)
from tests.runs.test_sudoku_solver import SOLUTION, puzzles_with

MESH = make_mesh(ONE_DEVICE, all_devices=False)
SURE, UNSURE = 0.9, 0.3  # probabilities of the digits of the network below, in odd and in even iterations

# By puzzle: how many of its empty cells are wrong in each iteration.
WRONG = np.array([[2, 0, 1, 0], [1, 0, 0, 3], [2, 2, 2, 4], [3, 3, 1, 0]])
EMPTY = (3, 4, 5, 6)


def grids(puzzle, wrong_T):
    """Grids of a puzzle in which the first empty cells hold another digit than the solution's, the next one."""
    result = np.repeat(SOLUTION[None], len(wrong_T), 0)
    for grid, n in zip(result, wrong_T, strict=True):
        cells = np.flatnonzero(puzzle == 0)[:n]
        grid[cells] = grid[cells] % 9 + 1
    return result


PUZZLES = puzzles_with(EMPTY)
SHOWN = np.stack([grids(puzzle, wrong_T) for puzzle, wrong_T in zip(PUZZLES, WRONG, strict=True)])


class Script:
    """Shows the grids of `SHOWN`; hidden states are (number of empty cells, iteration)."""

    def start(self, puzzles):
        n_empty = jnp.sum(puzzles == 0, axis=1, dtype=jnp.float32)
        return jnp.stack([n_empty, jnp.zeros_like(n_empty)], -1)[:, None], jnp.zeros((*puzzles.shape, 9))

    def iterate(self, grid):
        state = grid[0] + jnp.array([0.0, 1.0])
        age = state[:, 0, 1].astype(jnp.int32)
        digits = jnp.asarray(SHOWN)[state[:, 0, 0].astype(jnp.int32) - EMPTY[0], age - 1]
        sure = jnp.where(age % 2 == 1, SURE, UNSURE)[:, None, None]
        chosen = jax.nn.one_hot(digits.astype(jnp.int32) - 1, 9)
        p = jnp.where(chosen > 0, sure, (1 - sure) / 8)
        return (state, p), jnp.log(p)


RUN = SimpleNamespace(network=SimpleNamespace(merge=lambda params: Script()), params={}, mesh=MESH)
SET = Puzzles(PUZZLES, np.repeat(SOLUTION[None], len(PUZZLES), 0), np.zeros(len(PUZZLES)))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_a_sequence_of_grids_is_described_by_hand(batch_size):
    found = follow(RUN, SET, iterations=4, batch_size=batch_size)
    assert found.valid_TxN.tolist() == (WRONG.T == 0).tolist()
    assert found.wrong_TxN.tolist() == WRONG.T.tolist()
    # A wrong cell always holds the same digit, so it changes where the number of wrong cells does.
    changes = np.abs(np.diff(WRONG, axis=1)).T
    assert found.changed_TxN.tolist() == [list(EMPTY), *changes.tolist()]
    t, n = np.arange(1, 5)[:, None], np.array(EMPTY)
    np.testing.assert_allclose(found.size_TxN, np.sqrt((t**2 + n**2) / 2), rtol=1e-6)
    np.testing.assert_allclose(found.distance_TxN, 1 / np.sqrt(t**2 + n**2), rtol=1e-6)
    turn = np.arctan(t / n) - np.arctan((t - 1) / n)
    np.testing.assert_allclose(found.angle_TxN, np.rad2deg(turn), rtol=1e-4)
    confidence = np.where(WRONG.T > 0, np.where(t % 2 == 1, SURE, UNSURE), np.nan)
    np.testing.assert_allclose(found.confidence_TxN, confidence, rtol=1e-5)
    assert found.groups_N.tolist() == [0, 1, 2, 0]
    assert found.first_N.tolist() == [2, 2, 0, 4]


def test_the_summary_counts_flips_and_averages_groups():
    summary = summarise(follow(RUN, SET, iterations=4))
    assert summary["groups"] == {"kept": 2, "lost": 1, "unsolved": 1}
    rows = summary["iterations"]
    names = ("valid", "newly_solved", "regained", "broken")
    assert [[row[name] for name in names] for row in rows] == [[0, 0, 0, 0], [2, 2, 0, 0], [1, 0, 0, 1], [2, 1, 1, 1]]
    assert [row["kept"]["wrong_cells"] for row in rows] == [2.5, 1.5, 1.0, 0.0]
    assert [row["lost"]["changed_cells"] for row in rows] == [4, 1, 0, 3]
    # In the second iteration, only the fourth puzzle of those kept has wrong cells; in the last, none.
    *confidence, last = [row["kept"]["wrong_confidence"] for row in rows]
    assert confidence == pytest.approx([SURE, UNSURE, SURE], rel=1e-5)
    assert last is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_counts_add_up(n_iterations, n_puzzles, seed):
    valid = np.random.default_rng(seed).random((n_iterations, n_puzzles)) < 0.5
    zeros = np.zeros(valid.shape)
    rows = summarise(Trajectories(valid, zeros, zeros, zeros, zeros, zeros, zeros))["iterations"]
    before = 0
    for row in rows:
        assert row["valid"] == before + row["newly_solved"] + row["regained"] - row["broken"]
        before = row["valid"]
    assert sum(row["newly_solved"] for row in rows) == valid.any(axis=0).sum()


def test_a_figure_of_the_sequences(tmp_path):
    radii = [{"group": "kept", "puzzle": 0, "state": "last", "radius": 0.9, "error": 0.01, "growth": 1.1}]
    draw_stability(tmp_path / "stability.png", summarise(follow(RUN, SET, iterations=4)), radii)
    assert matplotlib.image.imread(tmp_path / "stability.png").std() > 0.05


# --- spectral radii ---------------------------------------------------------------------------------------


def radius_of(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


def rotation(radius, angle, rest):
    """A pair of complex eigenvalues, and a smaller real one."""
    c, s = radius * np.cos(angle), radius * np.sin(angle)
    return np.array([[c, -s, 0.3], [s, c, -0.2], [0, 0, rest]])


MATRICES = np.stack(
    [
        np.diag([1.5, -0.3, 0.1]),
        np.diag([-0.7, 0.2, 0.0]),
        rotation(1.3, 1.0, 0.6),
        rotation(0.8, 2.5, -0.5),
        np.array([[0.9, 40.0, 3.0], [0, 0.4, 50.0], [0, 0, 0.2]]),  # far from normal: grows 2,000-fold at first
        np.zeros((3, 3)),
    ]
)


def test_the_radius_of_linear_maps():
    """Each row has a map of its own; the state is a tree of two arrays."""
    matrices = jnp.asarray(MATRICES)

    def step(state):
        x = jnp.concatenate([state["a"], state["b"][..., 0]], axis=1)
        y = jnp.einsum("kij,kj->ki", matrices, x)
        return {"a": y[:, :2], "b": y[:, 2:, None]}

    state = {"a": jnp.ones((6, 2)), "b": jnp.ones((6, 1, 1))}
    radius, error = spectral_radius(step, state, jax.random.key(0))
    np.testing.assert_allclose(radius, [radius_of(matrix) for matrix in MATRICES], rtol=0.02)
    assert float(radius[-1]) == 0
    assert (np.asarray(error) < 0.04).all()


def test_the_radius_of_a_curved_map_depends_on_the_state():
    """tanh(W x) has the Jacobian diag(1 - tanh(W x)^2) W."""
    w = np.random.default_rng(0).normal(size=(8, 8))
    x = np.stack([np.zeros(8), np.full(8, 0.3), np.random.default_rng(1).normal(size=8)])
    radius, _ = spectral_radius(lambda x: jnp.tanh(x @ w.T), jnp.asarray(x, jnp.float32), jax.random.key(1))
    expected = [radius_of((1 - np.tanh(w @ row) ** 2)[:, None] * w) for row in x]
    np.testing.assert_allclose(radius, expected, rtol=0.05)
    assert expected[0] > 1.2 * expected[2]


def test_the_radius_of_a_network_is_that_of_its_jacobian():
    """At states after different numbers of iterations, with all parameters random."""
    config = SudokuConfig(d_model=4, n_layers=1, n_heads=1, d_mlp=8)
    network = build(config)
    leaves, structure = jax.tree.flatten(network.init(jax.random.key(0)))
    rng = np.random.default_rng(3)
    params = structure.unflatten([jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype) for leaf in leaves])
    run = SimpleNamespace(network=network, params=params, mesh=MESH)
    puzzles, after = puzzles_with([20, 50]), [3, 1]
    found = spectral_radii(run, puzzles, np.array(after))
    model = network.merge(params)

    @jax.jit
    def jacobian(h, p):
        def flat(x):
            return jnp.concatenate(
                [
                    part.ravel()
                    for part in model.iterate((x[: h.size].reshape(h.shape), x[h.size :].reshape(p.shape)))[0]
                ]
            )

        return jax.jacrev(flat)(jnp.concatenate([h.ravel(), p.ravel()]))

    for i in range(2):
        grid = model.start(jnp.asarray(puzzles[i : i + 1]))
        for _ in range(after[i]):
            grid = model.iterate(grid)[0]
        largest = eigs(np.asarray(jacobian(*grid)), k=3, return_eigenvectors=False)
        size, next_size = (np.sqrt(np.mean(np.square(g[0]))) for g in (grid, model.iterate(grid)[0]))
        assert found["growth"][i] == pytest.approx(next_size / size, rel=1e-4)
        assert found["radius"][i] == pytest.approx(np.abs(largest).max(), rel=0.03), found["error"]


def test_states_of_the_groups():
    """The first valid state of those that have one, and the last state of all, of at most so many puzzles."""
    states = radii_of_groups(RUN, SET, follow(RUN, SET, iterations=4), n_each=1)
    places = [(state["group"], state["puzzle"], state["state"], state["iteration"]) for state in states]
    assert places == [
        ("kept", 0, "first valid", 2),
        ("kept", 0, "last", 4),
        ("lost", 1, "first valid", 2),
        ("lost", 1, "last", 4),
        ("unsolved", 2, "last", 4),
    ]
    # The script's hidden states are shifted: the Jacobian is the identity.
    np.testing.assert_allclose([state["radius"] for state in states], 1, rtol=1e-4)
    assert states[0]["growth"] == pytest.approx(np.sqrt((9 + 9) / (9 + 4)), rel=1e-5)
