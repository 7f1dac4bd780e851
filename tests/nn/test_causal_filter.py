"""The causal filter against a loop over tokens and taps, with and without history."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.nn.causal_filter import causal_filter, next_history
from psann_jax.nn.positions import document_reach


def brute_force(x, taps, segment_ids, dilation):
    y = np.zeros_like(x)
    for b, t in np.ndindex(x.shape[:2]):
        for k in range(len(taps)):
            source = t - k * dilation
            if source >= 0 and (segment_ids[b, source : t + 1] == segment_ids[b, t]).all():
                y[b, t] += taps[k] * x[b, source]
    return y


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 12),
    n_taps=st.integers(1, 5),
    dilation=st.integers(1, 4),
    traced=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_a_loop_over_tokens_and_taps(length, n_taps, dilation, traced, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, length, 3)).astype(np.float32)
    taps = rng.normal(size=(n_taps, 3)).astype(np.float32)
    segment_ids = 1 + np.cumsum(rng.random((2, length)) < 0.3, axis=1)
    reach = document_reach(jnp.asarray(segment_ids))
    shift = (n_taps - 1) * dilation
    step = jnp.asarray(dilation) if traced else dilation
    y = causal_filter(jnp.asarray(x), jnp.asarray(taps), reach, dilation=step, max_shift=shift)
    np.testing.assert_allclose(y, brute_force(x, taps, segment_ids, dilation), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 10), dilation=st.integers(1, 4), seed=st.integers(0, 99))
def test_history_continues_a_row(cut, dilation, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(1, 10, 3)), jnp.float32)
    taps = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    reach, shift = jnp.arange(10)[None], 2 * dilation
    whole = causal_filter(x, taps, reach, dilation=dilation, max_shift=shift)
    history = next_history(jnp.zeros((1, shift, 3)), x[:, :cut], jnp.array([cut]))
    rest = causal_filter(x[:, cut:], taps, reach[:, cut:], dilation=dilation, max_shift=shift, history_BxWxD=history)
    np.testing.assert_allclose(rest, whole[:, cut:], atol=1e-5)


def test_history_takes_only_the_valid_tokens_of_each_row():
    x = jnp.arange(12.0).reshape(2, 6, 1)
    history = next_history(jnp.full((2, 3, 1), -1.0), x, jnp.array([2, 6]))
    np.testing.assert_array_equal(history[..., 0], [[-1, 0, 1], [9, 10, 11]])
