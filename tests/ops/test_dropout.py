"""Which elements dropout keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.dropout import dropout, kept


def mask(key, rate, *shape):
    return np.asarray(kept(key, rate, shape)[0], float)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_the_share_is_kept_everywhere(rate, width, seed):
    stays, share = kept(jax.random.key(seed), rate, (4000, width))
    assert stays.shape == (4000, width)
    assert abs(share - (1 - rate)) <= 2**-32
    # Five standard errors, of each column: no place is treated otherwise.
    np.testing.assert_allclose(stays.mean(axis=0), share, atol=5 * np.sqrt(share * (1 - share) / 4000) + 1e-3)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(2**16, 8), (8, 2**16), (2**8, 8, 2**8)])
def test_places_are_independent(impl, shape):
    """Places next to each other along any axis, and a power of two apart, agree as often as chance has it."""
    stays = mask(jax.random.key(3, impl=impl), 0.3, *shape)
    for axis, size in enumerate(shape):
        for distance in (2**i for i in range(16) if 2**i < size):
            first, second = (np.take(stays, np.arange(a, a + size - distance), axis).ravel() for a in (0, distance))
            correlation = np.corrcoef(first, second)[0, 1]
            assert abs(correlation) < 5 / np.sqrt(len(first)), (axis, distance)


def test_runs_are_as_long_as_chance_has_it():
    stays = mask(jax.random.key(5), 0.5, 2**20) > 0
    changes = np.flatnonzero(np.diff(stays))
    lengths = np.diff(changes)
    for length in range(1, 10):
        expected = 2.0**-length
        error = np.sqrt(expected * (1 - expected) / len(lengths))
        assert np.mean(lengths == length) == pytest.approx(expected, abs=5 * error)


def test_keys_give_independent_masks():
    masks = np.stack([mask(jax.random.key(seed), 0.5, 2**14) for seed in range(24)])
    correlation = np.corrcoef(masks)
    np.testing.assert_allclose(correlation, np.eye(24), atol=5 / np.sqrt(2**14))


def test_no_key_gives_the_mask_of_another_in_another_order(monkeypatch):
    words = {1: (5, 7), 2: (5 ^ 1, 9)}  # the first words differ as neighbouring places do
    monkeypatch.setattr(jax.random, "bits", lambda key, *_: jnp.array(words[key], jnp.uint32))
    one, other = (mask(key, 0.5, 2**14) for key in words)
    exchanged = other.reshape(-1, 2)[:, ::-1].ravel()
    assert abs(np.corrcoef(one, exchanged)[0, 1]) < 5 / np.sqrt(2**14)


def test_what_stays_keeps_the_mean():
    x = jnp.full((300, 301), 2.0)
    y = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(2 / 0.75)}
    np.testing.assert_allclose(y.mean(), 2.0, rtol=0.02)
    np.testing.assert_array_equal(y, dropout(x, 0.25, jax.random.key(0)))
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    almost = dropout(x, 1 - 1e-12, jax.random.key(0))
    assert jnp.isfinite(almost).all()


def test_the_gradient_passes_where_the_value_did_and_no_mask_is_stored():
    key, x = jax.random.key(1), jnp.linspace(1.0, 2.0, 600).reshape(20, 30)
    y, pull = jax.vjp(lambda x: dropout(x, 0.4, key), x)
    np.testing.assert_array_equal(pull(jnp.ones_like(x))[0] != 0, y != 0)
    np.testing.assert_allclose(pull(x)[0], y, rtol=1e-6)
    assert max(residual.size for residual in jax.tree.leaves(pull)) < x.size
