"""Shares of solved puzzles and their errors."""

import math

import numpy as np

from psann_jax.config.sudoku import BUCKETS, NATURAL_FRACTIONS
from psann_jax.tasks.sudoku_scores import fractions_of, solved_fractions


def test_totals_and_errors():
    counts = dict(zip(BUCKETS, ((9, 10), (6, 10), (4, 10), (2, 10), (10, 40)), strict=True))
    shares = solved_fractions(counts)
    np.testing.assert_allclose(shares["solved"], 31 / 80)
    np.testing.assert_allclose(shares["solved_2se"], 2 * math.sqrt(31 / 80 * 49 / 80 / 80))
    np.testing.assert_allclose(shares["solved_balanced"], (0.9 + 0.6 + 0.4 + 0.2 + 0.25) / 5)
    natural = np.dot(NATURAL_FRACTIONS, (0.9, 0.6, 0.4, 0.2, 0.25))
    np.testing.assert_allclose(shares["solved_natural"], natural)
    variances = np.array((0.9 * 0.1, 0.6 * 0.4, 0.4 * 0.6, 0.2 * 0.8, 0.25 * 0.75 / 4)) / 10
    variance = np.dot(np.square(NATURAL_FRACTIONS), variances)
    np.testing.assert_allclose(shares["solved_natural_2se"], 2 * math.sqrt(variance))
    np.testing.assert_allclose(sum(NATURAL_FRACTIONS), 1)


def test_buckets_without_puzzles_are_left_out():
    shares = fractions_of(np.array([True, False, True, True]), np.array([0, 0, 3, -1]))
    assert {name for name in shares if not name.endswith("_2se")} == {
        "solved",
        "solved_balanced",
        "solved_0",
        "solved_11-50",
    }
    assert (shares["solved"], shares["solved_balanced"], shares["solved_0"]) == (2 / 3, 0.75, 0.5)
    assert fractions_of(np.array([True]), np.array([-1])) == {}
