"""Losses by part of the validation data and their standard errors."""

import math

import numpy as np
import pytest

from psann_jax.train.loss_parts import LossParts, rows_by_part, standard_error


def test_sums_by_row_and_part():
    nll, parts = np.array([[1.0, 2, 4], [8, 16, 32]], np.float32), np.array([[0, 2, 0], [-1, 2, -1]])
    sums, weights = rows_by_part(nll, parts, 3)
    np.testing.assert_array_equal(sums, [[5, 0, 2], [0, 0, 16]])
    np.testing.assert_array_equal(weights, [[2, 0, 1], [0, 0, 1]])


def test_a_token_that_is_no_target_may_have_any_loss():
    sums, _ = rows_by_part(np.array([[1.0, np.nan]], np.float32), np.array([[0, -1]]), 1)
    assert sums.tolist() == [[1.0]]


def test_standard_error_by_hand():
    # Five windows have blocks of two: (1, 2), (3, 4), (5). The loss is 15 / 10.
    nll, weight = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 2, 2, 2])
    residuals = [3 - 6, 7 - 6, 5 - 3]
    assert standard_error(nll, weight) == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 10)
    parts = LossParts(("all", "none"), np.stack([nll, 0 * nll], 1), np.stack([weight, 0 * weight], 1)).losses()
    assert (parts[0].loss, parts[0].tokens, parts[1].tokens) == (1.5, 10, 0)
    assert math.isnan(parts[1].loss)
    assert math.isnan(parts[1].stderr)


def test_one_block_has_no_standard_error():
    assert math.isnan(standard_error(np.ones(1), np.ones(1)))
    assert math.isnan(standard_error(np.array([1.0, 0, 0, 0]), np.array([1.0, 0, 0, 0])))


@pytest.mark.parametrize("correlated", [False, True])
def test_the_standard_error_is_the_deviation_over_texts(correlated):
    rng, estimates, losses = np.random.default_rng(0), [], []
    for _ in range(400):
        weight = rng.integers(1, 9, 512).astype(np.float64)
        # Windows of one document have a loss in common; documents of 2 windows here, blocks of 8.
        level = np.repeat(rng.normal(3, 0.5, 256), 2) if correlated else rng.normal(3, 0.5, 512)
        nll = weight * level
        losses.append(nll.sum() / weight.sum())
        estimates.append(standard_error(nll, weight))
    assert np.mean(estimates) == pytest.approx(np.std(losses), rel=0.12)
