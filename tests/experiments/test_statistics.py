"""Statistics over several seeds: intervals, Holm's procedure, and what a verdict needs."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from psann_jax.experiments.statistics import ALPHA, POWER, Noise, Samples, differences, holm, mean_and_deviation


def by_seed(values, first=1):
    return dict(enumerate(values, first))


def one(values, reference, first=1, text=None):
    """The only comparison of a report; the reference's seeds begin at `first`."""
    (found,) = differences([Samples(by_seed(values), by_seed(reference, first), text)])
    return found


REFERENCE = [3.0, 3.1, 2.9, 3.05, 2.95]
VALUES = [2.9, 3.01, 2.8, 2.96, 2.84]


def test_shared_seeds_are_paired():
    d = one(VALUES, REFERENCE)
    expected = stats.ttest_rel(VALUES, REFERENCE)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((d.adjusted_p, d.low, d.high), (expected.pvalue, *interval), rtol=1e-9)
    np.testing.assert_allclose(d.pairs, np.subtract(VALUES, REFERENCE))
    assert (d.mean, d.seeds, d.verdict) == (pytest.approx(-0.098), (5, 5), "better")
    assert one(REFERENCE, VALUES).verdict == "worse"


def test_other_seeds_are_compared_by_welchs_test():
    d = one(VALUES, REFERENCE[:4], first=100)
    expected = stats.ttest_ind(VALUES, REFERENCE[:4], equal_var=False)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((d.adjusted_p, d.low, d.high), (expected.pvalue, *interval), rtol=1e-9)
    assert (d.pairs, d.seeds) == ((), (5, 4))


def test_seeds_that_one_side_lacks_are_left_out_of_the_pairs():
    assert one(VALUES, REFERENCE[:4]) == one(VALUES[:4], REFERENCE[:4])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_there_is_no_verdict_below_four_seeds(n):
    """The percentile bootstrap of three pairs excluded zero whenever all three had the same sign."""
    d = one([2.0, 2.01, 1.99][:n], REFERENCE[:n])
    assert d.verdict == "no verdict: fewer than 4 seeds"
    assert len(d.pairs) == n
    assert math.isnan(d.low)
    assert math.isnan(d.adjusted_p)


def test_comparisons_without_enough_seeds_do_not_count_for_the_others():
    few, enough = Samples(by_seed([1.0]), by_seed([2.0])), Samples(by_seed(VALUES), by_seed(REFERENCE))
    assert differences([few, enough, few])[1] == differences([enough])[0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([2.0, 2.1, math.nan, 2.0, 2.0], "a run diverged"),
        ([2.0, 2.1, math.inf, 2.0, 2.0], "a run diverged"),
        (REFERENCE, "equal for every seed"),
        ([x - 0.1 for x in REFERENCE], "no spread over the seeds"),
    ],
)
def test_what_no_test_can_judge_has_no_verdict_but_counts(values, reason):
    broken, clear = Samples(by_seed(values), by_seed(REFERENCE)), Samples(by_seed(VALUES), by_seed(REFERENCE))
    first, second = differences([broken, clear])
    assert first.verdict == f"no verdict: {reason}"
    assert second.adjusted_p == pytest.approx(2 * differences([clear])[0].adjusted_p)
    assert (first.tested, second.tested) == (2, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_rejects_what_its_definition_rejects(p_values):
    """Step down through the sorted p values and stop at the first one that exceeds alpha / (number left)."""
    rejected, order = set(), sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    for rank, i in enumerate(order):
        if not p_values[i] <= ALPHA / (len(p_values) - rank):
            break
        rejected.add(i)
    adjusted = holm(p_values)
    near = any(abs(p - ALPHA) < 1e-12 for p in adjusted)
    assert near or rejected == {i for i, p in enumerate(adjusted) if p <= ALPHA}
    assert all(math.isnan(p) or a >= p for p, a in zip(p_values, adjusted, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=6), min_size=1, max_size=5))
@example([[0.0, 0.0, 0.0, 4.9e-104]])  # the square of its variance is 0
def test_an_interval_never_contradicts_a_verdict(groups):
    found = differences([Samples(by_seed(group), by_seed([0.0] * len(group))) for group in groups])
    swapped = differences([Samples(by_seed([0.0] * len(group)), by_seed(group)) for group in groups])
    for d, s in zip(found, swapped, strict=True):
        assert d.verdict not in ("better", "worse") or d.low > 0 or d.high < 0
        np.testing.assert_allclose((d.mean, d.low, d.adjusted_p), (-s.mean, -s.high, s.adjusted_p), atol=1e-12)


@pytest.mark.parametrize("n", [4, 10])
def test_the_detectable_difference_is_found_in_four_of_five_experiments(n):
    d = one([0.5, 0.7, 0.2, 0.4, 0.6, 0.3, 0.9, 0.1, 0.45, 0.55][:n], [0.0] * n)
    rng = np.random.default_rng(0)
    deviation = np.std(d.pairs, ddof=1)
    draws = rng.normal(d.detectable, deviation, (20_000, n))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p <= ALPHA) == pytest.approx(POWER, abs=0.01)


def test_more_comparisons_need_larger_differences():
    samples = Samples(by_seed(VALUES), by_seed(REFERENCE))
    assert differences([samples] * 5)[0].detectable > 1.5 * differences([samples])[0].detectable


def test_the_noise_of_the_text_widens_the_interval():
    d, noisy = one(VALUES, REFERENCE), one(VALUES, REFERENCE, text=Noise(1e-3, 40))
    error = np.std(d.pairs, ddof=1) / math.sqrt(5)
    half = math.hypot(error * stats.t.ppf(0.975, 4), math.sqrt(1e-3) * stats.t.ppf(0.975, 40))
    np.testing.assert_allclose((noisy.low, noisy.high), (d.mean - half, d.mean + half))
    assert (d.verdict, noisy.verdict) == ("better", "better")
    assert one(VALUES, REFERENCE, text=Noise(1e-2, 40)).verdict == "no difference shown"
    nothing = one(VALUES, REFERENCE, text=Noise(0.0, 40))
    np.testing.assert_allclose((nothing.low, nothing.adjusted_p), (d.low, d.adjusted_p), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=6), st.floats(1e-6, 1))
def test_the_p_value_agrees_with_the_interval_when_there_are_two_noises(values, variance):
    d = one(values, [0.0] * len(values), text=Noise(variance, 30))
    assert d.reason or (d.adjusted_p < ALPHA - 1e-6) == (d.low > 0 or d.high < 0) or abs(d.adjusted_p - ALPHA) < 1e-6


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0, 10.0])
def test_two_noises_together_keep_the_error_rate(share):
    """Satterthwaite's degrees of freedom would miss 6.4 % here with four seeds and little noise of the text."""
    rng, n, reports = np.random.default_rng(3), 4, 3000
    seeds = rng.normal(0, math.sqrt(n), (reports, n))  # their mean has variance 1
    shift = rng.normal(0, math.sqrt(share), reports)
    noise = share * rng.chisquare(100, reports) / 100
    zeros = dict.fromkeys(range(n), 0.0)
    wrong = 0
    for row, moved, variance in zip(seeds, shift, noise, strict=True):
        (d,) = differences([Samples(by_seed(row + moved, 0), zeros, Noise(variance, 100))])
        wrong += d.verdict in ("better", "worse")
    assert wrong <= 0.06 * reports


def test_the_deviation_of_one_value_is_unknown():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert math.isnan(mean_and_deviation([1.0])[1])
