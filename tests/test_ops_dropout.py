"""Which elements dropout keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.nn.linear import dropout
from psann_jax.ops.dropout import kept


@settings(max_examples=20, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_the_share_is_kept_everywhere(rate, width, seed):
    stays, share = kept(jax.random.key(seed), rate, (4000, width))
    assert stays.shape == (4000, width)
    assert abs(share - (1 - rate)) <= 2**-16
    # Five standard errors, of each column: no place of a word is treated otherwise.
    np.testing.assert_allclose(stays.mean(axis=0), share, atol=5 * np.sqrt(share * (1 - share) / 4000) + 1e-3)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_neighbours_are_independent(impl):
    """Both halves of a word, and words next to each other."""
    stays, _ = kept(jax.random.key(3, impl=impl), 0.3, (50_000, 4))
    correlation = np.corrcoef(np.asarray(stays, float).T)
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.02)


def test_what_stays_keeps_the_mean():
    x = jnp.full((300, 301), 2.0)
    y = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(2 / 0.75)}
    np.testing.assert_allclose(y.mean(), 2.0, rtol=0.02)
    np.testing.assert_array_equal(y, dropout(x, 0.25, jax.random.key(0)))
    assert dropout(x, 0.25, None) is x
    almost = dropout(x, 1 - 1e-9, jax.random.key(0))
    assert jnp.isfinite(almost).all()
