"""Generated puzzles, and their split by grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.data.sudoku import generator_kernels
from psann_jax.data.sudoku.generator import generate, grid_keys
from psann_jax.data.sudoku.puzzles import Puzzles, bucket_bounds, concatenate, split_by_grid
from psann_jax.data.sudoku.rules import has_clues_of, is_solved
from psann_jax.data.sudoku.solver import rate, solve
from psann_jax.data.sudoku.symmetry import N_DRAWS, symmetry

COUNTS = (300, 60, 30, 6, 0)


@pytest.fixture(scope="module")
def generated():
    return generate(COUNTS, seed=1, progress=False)


def test_puzzles_have_one_solution_and_the_rating_of_their_bucket(generated):
    puzzles, lineages = generated
    assert np.bincount(puzzles.buckets_N, minlength=5).tolist() == list(COUNTS)
    assert (rate(puzzles.puzzles_Nx81) == puzzles.ratings_N).all()
    solutions, counts = solve(puzzles.puzzles_Nx81)
    assert (counts == 1).all()
    assert (solutions == puzzles.solutions_Nx81).all()
    assert is_solved(solutions).all()
    assert has_clues_of(solutions, puzzles.puzzles_Nx81).all()
    assert len(np.unique(puzzles.puzzles_Nx81, axis=0)) == len(puzzles)
    assert lineages.tolist() == [*range(390), *[390] * 6]


def test_puzzles_depend_on_the_seed_and_not_on_the_number(generated):
    puzzles, _ = generated
    fewer, _ = generate((100, 0, 5, 0, 0), seed=1, progress=False)
    assert (fewer.puzzles_Nx81[:100] == puzzles.puzzles_Nx81[:100]).all()
    assert (fewer.puzzles_Nx81[100:] == puzzles.puzzles_Nx81[360:365]).all()
    other, _ = generate((20, 0, 0, 0, 0), seed=2, progress=False)
    assert not (other.solutions_Nx81 == puzzles.solutions_Nx81[:20]).all(axis=1).any()


def test_a_minimal_puzzle_needs_every_clue():
    copies = symmetry(np.full((1, N_DRAWS), 0.5))
    puzzles, solutions = (np.zeros((4, 1, 81), np.uint8) for _ in range(2))
    seeds, ratings = np.arange(4, dtype=np.uint64), np.zeros((4, 1), np.int64)
    generator_kernels.make_puzzles(
        seeds, (0, 2**31, 0), (copies.cells_x81, copies.digits_x10), puzzles, solutions, ratings
    )
    for puzzle in puzzles[:, 0]:
        without = np.repeat(puzzle[None], (puzzle > 0).sum(), 0)
        without[np.arange(len(without)), np.flatnonzero(puzzle)] = 0
        assert (solve(without)[1] == 2).all()


def test_extra_clues_keep_the_rating_0(generated):
    easy, _ = generate((200, 0, 0, 0, 0), seed=1, extra_clues=20, progress=False)
    assert not rate(easy.puzzles_Nx81).any()
    more = (easy.puzzles_Nx81 > 0).sum(axis=1) - (generated[0].puzzles_Nx81[:200] > 0).sum(axis=1)
    assert 0 <= more[0] <= 20
    assert 8 < more.mean() < 12


def test_solutions_are_uniformly_random(generated):
    """Every digit appears equally often in every cell."""
    counts = np.apply_along_axis(np.bincount, 0, generated[0].solutions_Nx81, minlength=10)[1:]
    expected = len(generated[0]) / 9
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_grid_keys_are_the_same_for_symmetric_copies_only(generated):
    solutions = generated[0].solutions_Nx81[:390]
    keys = grid_keys(solutions)
    assert len(np.unique(keys)) == len(keys)
    copies = symmetry(np.random.default_rng(0).random((len(keys), N_DRAWS)))
    assert (grid_keys(copies.apply(solutions)) == keys).all()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_grid_and_no_group_is_on_both_sides(data):
    n = data.draw(st.integers(1, 40))
    groups, keys, buckets = (
        np.array(data.draw(st.lists(st.integers(0, most), min_size=n, max_size=n))) for most in (12, 15, 4)
    )
    fraction, seed = data.draw(st.floats(0.01, 0.99)), data.draw(st.integers(0, 9))
    train, valid = split_by_grid(groups, keys, buckets, fraction, seed)
    for kind in (groups, keys):
        assert not set(kind[train]) & set(kind[valid])
    assert len(set(train) | set(valid)) == len(train) + len(valid) <= n
    # Only puzzles that have the grid of a validation puzzle are excluded from both sides.
    assert set(keys[np.setdiff1d(np.arange(n), np.concatenate([train, valid]))]) <= set(keys[valid])


def test_a_fraction_of_each_bucket_is_drawn_for_validation():
    groups = np.arange(1000)
    buckets = np.repeat([0, 4], [990, 10])
    train, valid = split_by_grid(groups, groups, buckets, 0.02, 0)
    assert np.bincount(buckets[valid], minlength=5).tolist() == [20, 0, 0, 0, 1]
    assert len(train) == 979
    assert (split_by_grid(groups, groups, buckets, 0.02, 0)[1] == valid).all()
    assert (split_by_grid(groups, groups, buckets, 0.02, 1)[1] != valid).any()


def test_ratings_outside_every_bucket_are_counted():
    ratings = np.array([0, 1, 2, 3, 10, 11, 50, 51, 1e6, -1, 2.5, 50.5])
    grids = np.zeros((len(ratings), 81), np.uint8)
    puzzles = Puzzles(grids, grids, ratings)
    assert puzzles.buckets_N.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, -1, -1, -1]
    assert puzzles.describe() == (
        "12 puzzles, by rating 0: 1, 1-2: 2, 3-10: 2, 11-50: 2, 51+: 2, in no bucket and not used: 3"
    )
    assert len(concatenate([puzzles, puzzles.take(ratings < 0)])) == 13
    assert [bucket_bounds(bucket) for bucket in (0, 2)] == [(0, 0), (3, 10)]
