"""The symmetry group of Sudoku."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.data.sudoku.rules import UNITS_27x9, has_clues_of, is_solved, parse_grid
from psann_jax.data.sudoku.symmetry import N_DRAWS, Symmetry, symmetry

PUZZLE = parse_grid("53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79")
SOLUTION = parse_grid("534678912672195348198342567859761423426853791713924856961537284287419635345286179")


def random_symmetry(seed, *shape):
    return symmetry(np.random.default_rng(seed).random((*shape, N_DRAWS)))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_transformed_solutions_are_valid_and_match_their_puzzles(seed):
    element = random_symmetry(seed, 3)
    puzzles, solutions = (element.apply(np.repeat(g[None], 3, 0)) for g in (PUZZLE, SOLUTION))
    assert is_solved(solutions).all()
    assert has_clues_of(solutions, puzzles).all()
    assert ((puzzles > 0).sum(axis=1) == (PUZZLE > 0).sum()).all()
    # Rows, columns and boxes are mapped to rows, columns and boxes.
    units = {frozenset(u) for u in UNITS_27x9.tolist()}
    assert {frozenset(element.cells_x81[0][u].tolist()) for u in UNITS_27x9} == units


def test_every_part_of_the_group_is_reached():
    """All 6^4 row orders, 6^4 column orders and 2 transpositions appear; 9! relabellings are too many to see all."""
    element = random_symmetry(0, 30_000)
    cells = element.cells_x81.reshape(-1, 9, 9)
    assert len(np.unique(element.digits_x10, axis=0)) > 28_000
    assert (np.sort(element.digits_x10, axis=1) == np.arange(10)).all()
    assert (element.digits_x10[:, 0] == 0).all()
    transposed = cells[:, 0, 0] // 9 == cells[:, 0, 1] // 9
    assert 0.48 < transposed.mean() < 0.52
    straight = cells[transposed]
    assert len(np.unique(straight[:, :, 0] // 9, axis=0)) == 6**4
    assert len(np.unique(straight[:, 0, :] % 9, axis=0)) == 6**4
    assert len(np.unique(cells.reshape(-1, 81), axis=0)) > 29_700  # of 2 * 6^8


def test_relabellings_are_uniform():
    counts = np.stack([np.bincount(column, minlength=10)[1:] for column in random_symmetry(3, 9000).digits_x10.T[1:]])
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_jax_and_numpy_agree():
    draws = jax.random.uniform(jax.random.key(0), (6, N_DRAWS))

    @jax.jit
    def transform(draws, grids):
        return symmetry(draws).apply(grids)

    grids = np.repeat(SOLUTION[None], 6, 0)
    transformed = transform(draws, grids)
    assert transformed.dtype == np.uint8
    np.testing.assert_array_equal(transformed, symmetry(np.asarray(draws)).apply(grids))
    assert len(np.unique(transformed, axis=0)) == 6


def test_one_element_written_out():
    draws = np.full(N_DRAWS, 0.5)
    draws[:9] = np.arange(9)[::-1]  # digits 9 to 1
    draws[9:12] = [2, 0, 1]  # bands 1, 2, 0
    draws[-1] = 0.9  # transposed
    element = symmetry(draws)
    assert isinstance(element, Symmetry)
    transformed = element.apply(SOLUTION).reshape(9, 9)
    bands = SOLUTION.reshape(9, 9).T[:, :]
    np.testing.assert_array_equal(transformed, 10 - bands[[*range(3, 9), *range(3)]])
