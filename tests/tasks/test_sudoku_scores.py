"""Fractions of solved puzzles and their intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.config.sudoku import BUCKETS, NATURAL_FRACTIONS
from psann_jax.tasks.sudoku_scores import LEAST, fractions_of, left_out, solved_fractions, wilson


def counts_of(*solved_and_puzzles):
    return dict(zip(BUCKETS, solved_and_puzzles, strict=True))


def test_totals_are_means_of_the_ratings():
    fractions = solved_fractions(counts_of((90, 100), (60, 100), (40, 100), (20, 100), (100, 400)))
    np.testing.assert_allclose(fractions["solved"], 310 / 800)
    np.testing.assert_allclose(fractions["solved_balanced"], (0.9 + 0.6 + 0.4 + 0.2 + 0.25) / 5)
    natural = np.dot(NATURAL_FRACTIONS, (0.9, 0.6, 0.4, 0.2, 0.25))
    np.testing.assert_allclose(fractions["solved_natural"], natural)
    np.testing.assert_allclose(sum(NATURAL_FRACTIONS), 1)
    # At these sizes the interval of a mean is nearly that of the normal distribution.
    variances = np.array((0.9 * 0.1, 0.6 * 0.4, 0.4 * 0.6, 0.2 * 0.8, 0.25 * 0.75 / 4)) / 100
    for name, weights in (("balanced", np.full(5, 0.2)), ("natural", np.array(NATURAL_FRACTIONS))):
        half = 1.96 * math.sqrt(np.dot(weights**2, variances))
        low, high = (fractions[f"solved_{name}_{end}"] for end in ("low", "high"))
        np.testing.assert_allclose((high - low) / 2, half, rtol=0.05)
        assert low < fractions[f"solved_{name}"] < high


def test_intervals_are_those_of_wilson():
    """Values of table I in Newcombe (1998), "Two-sided confidence intervals for the single proportion"."""
    for solved, puzzles, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = wilson(solved, puzzles)
        np.testing.assert_allclose((found.low, found.high), (low, high), atol=5e-5)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_is_never_empty_and_holds_its_fraction(puzzles, p):
    found = wilson(round(p * puzzles), puzzles)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 1 / (puzzles + 4)


def test_ratings_with_few_puzzles_do_not_decide_the_balanced_mean():
    counts = counts_of((90, 100), (LEAST // 2, LEAST), (1, LEAST - 1), (0, 0), (1, 1))
    fractions = solved_fractions(counts)
    np.testing.assert_allclose(fractions["solved_balanced"], 0.7)
    assert (fractions["solved_51+"], fractions["solved_51+_high"]) == (1, 1)
    assert fractions["solved_51+_low"] < 0.21  # where two standard errors are 0
    assert "solved_natural" not in fractions
    buckets = np.repeat([0, 1, 2, 4, -1], [100, LEAST, LEAST - 1, 1, 7])
    said = f"ratings with fewer than {LEAST} puzzles are left out of the balanced mean: 3-10 ({LEAST - 1}), 51+ (1)"
    assert left_out(buckets) == said
    assert left_out(np.repeat([0, 4], LEAST)) == ""


def test_a_rare_rating_widens_the_natural_interval():
    many, few = (solved_fractions(counts_of(*[(90, 100)] * 4, (n // 2, n))) for n in (100, 2))
    assert many["solved_natural"] == pytest.approx(few["solved_natural"])
    widths = [f["solved_natural_high"] - f["solved_natural_low"] for f in (many, few)]
    assert widths[1] > 1.4 * widths[0]


def test_ratings_without_puzzles_have_no_figure():
    fractions = fractions_of(np.array([True, False, True, True]), np.array([0, 0, 3, -1]))
    named = {name for name in fractions if not name.endswith(("_low", "_high"))}
    assert named == {"solved", "solved_0", "solved_11-50"}
    assert (fractions["solved"], fractions["solved_0"]) == (2 / 3, 0.5)
    assert fractions_of(np.array([True]), np.array([-1])) == {}
