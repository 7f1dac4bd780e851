"""ops/dropout.py: statistics of the masks, and the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.dropout import dropout, keep_mask


def mask(key, rate, *shape):
    return np.asarray(keep_mask(key, rate, shape)[0], float)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_every_column_keeps_the_expected_fraction(rate, width, seed):
    keep, keep_prob = keep_mask(jax.random.key(seed), rate, (4000, width))
    assert keep.shape == (4000, width)
    assert abs(keep_prob - (1 - rate)) <= 2**-32
    tolerance = 5 * np.sqrt(keep_prob * (1 - keep_prob) / 4000) + 1e-3  # five standard errors
    np.testing.assert_allclose(keep.mean(axis=0), keep_prob, atol=tolerance)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(2**16, 8), (8, 2**16), (2**8, 8, 2**8)])
def test_elements_are_independent(impl, shape):
    """Elements a power of two apart along any axis are uncorrelated."""
    keep = mask(jax.random.key(3, impl=impl), 0.3, *shape)
    for axis, size in enumerate(shape):
        for distance in (2**i for i in range(16) if 2**i < size):
            first, second = (np.take(keep, np.arange(a, a + size - distance), axis).ravel() for a in (0, distance))
            correlation = np.corrcoef(first, second)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(len(first)), (axis, distance)


def test_run_lengths_are_geometric():
    keep = mask(jax.random.key(5), 0.5, 2**20) > 0
    changes = np.flatnonzero(np.diff(keep))
    lengths = np.diff(changes)
    for length in range(1, 10):
        expected = 2.0**-length
        error = np.sqrt(expected * (1 - expected) / len(lengths))
        assert np.mean(lengths == length) == pytest.approx(expected, abs=5 * error)


def test_keys_give_independent_masks():
    masks = np.stack([mask(jax.random.key(seed), 0.5, 2**14) for seed in range(24)])
    correlation = np.corrcoef(masks)
    np.testing.assert_allclose(correlation, np.eye(24), atol=5 / np.sqrt(2**14))


def test_no_mask_is_a_permutation_of_another(monkeypatch):
    words = {1: (5, 7), 2: (5 ^ 1, 9)}  # the first words differ like neighbouring indices
    monkeypatch.setattr(jax.random, "bits", lambda key, *_: jnp.array(words[key], jnp.uint32))
    one, other = (mask(key, 0.5, 2**14) for key in words)
    permuted = other.reshape(-1, 2)[:, ::-1].ravel()
    assert abs(np.corrcoef(one, permuted)[0, 1]) < 5 / np.sqrt(2**14)


def test_dropout_keeps_the_mean():
    x = jnp.full((300, 301), 2.0)
    y = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(2 / 0.75)}
    np.testing.assert_allclose(y.mean(), 2.0, rtol=0.02)
    np.testing.assert_array_equal(y, dropout(x, 0.25, jax.random.key(0)))
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    almost = dropout(x, 1 - 1e-12, jax.random.key(0))
    assert jnp.isfinite(almost).all()


def test_the_gradient_has_the_same_mask_and_no_mask_is_saved():
    key, x = jax.random.key(1), jnp.linspace(1.0, 2.0, 600).reshape(20, 30)
    y, pull = jax.vjp(lambda x: dropout(x, 0.4, key), x)
    np.testing.assert_array_equal(pull(jnp.ones_like(x))[0] != 0, y != 0)
    np.testing.assert_allclose(pull(x)[0], y, rtol=1e-6)
    assert max(residual.size for residual in jax.tree.leaves(pull)) < x.size
