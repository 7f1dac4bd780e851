"""Statistics over several seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.experiments.statistics import mean_and_deviation, paired_difference


def test_a_clear_difference_is_shown_and_noise_is_not():
    reference = [3.0, 3.1, 2.9]
    d = paired_difference([2.9, 3.01, 2.8], reference)
    assert d.shown
    assert d.mean == pytest.approx(-0.29 / 3)
    assert d.low < d.mean < d.high < 0
    assert d.seeds_needed == 2
    assert not paired_difference([3.05, 3.02, 2.97], reference).shown


def test_the_interval_is_that_of_the_mean_of_many():
    """For many pairs the bootstrap gives what the normal distribution does."""
    rng = np.random.default_rng(1)
    reference, noise = rng.normal(size=200), rng.normal(0.1, 0.5, 200)
    d = paired_difference(reference + noise, reference)
    width = 1.96 * noise.std(ddof=1) / math.sqrt(200)
    np.testing.assert_allclose((d.low, d.high), (noise.mean() - width, noise.mean() + width), atol=0.01)
    assert d.seeds_needed == math.ceil((2.8 * noise.std(ddof=1) / noise.mean()) ** 2)


def test_one_seed_shows_nothing():
    d = paired_difference([1.0], [2.0])
    assert (d.mean, d.shown, d.seeds_needed) == (-1.0, False, None)
    assert math.isnan(mean_and_deviation([1.0])[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_swapping_changes_the_sign(values):
    reference = [0.0] * len(values)
    d, swapped = paired_difference(values, reference), paired_difference(reference, values)
    np.testing.assert_allclose((d.mean, d.low, d.high), (-swapped.mean, -swapped.high, -swapped.low), atol=0.3)
    assert d.low - 1e-9 <= d.mean <= d.high + 1e-9
    assert mean_and_deviation(values)[0] == pytest.approx(np.mean(values))
