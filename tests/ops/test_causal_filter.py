"""The causal filter's own gradients against JAX's of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psann_jax.nn.positions import document_reach
from psann_jax.ops.causal_filter import causal_filter, shifted_sum


def draw(length, n_taps, more=0, dtype="float64", seed=0):
    """Input behind earlier positions, taps, reach, and a gradient of the output."""
    history = min(n_taps - 1, length) + more
    rng = np.random.default_rng(seed)
    padded = rng.normal(size=(2, history + length, 3)).astype(dtype)
    taps = rng.normal(size=(n_taps, 3)).astype(dtype)
    segment_ids = 1 + np.cumsum(rng.random((2, length)) < 0.2, axis=1)
    # Of the first document, the positions before the window may be a part.
    reach = np.asarray(document_reach(jnp.asarray(segment_ids))) + history * (segment_ids == segment_ids[:, :1])
    return (padded, taps), reach, rng.normal(size=(2, length, 3)).astype(dtype)


def value_and_gradients(function, inputs, reach, dy):
    @jax.jit  # or every operation of every size would be compiled by itself
    def run(inputs, reach, dy):
        y, pullback = jax.vjp(lambda *args: function(*args, reach), *inputs)
        return y, *pullback(dy)

    return run(tuple(map(jnp.asarray, inputs)), jnp.asarray(reach), jnp.asarray(dy))


@settings(max_examples=5, deadline=None)
@example(length=2, more=0, n_taps=4, seed=0)  # taps that reach past the beginning
@given(length=st.integers(1, 40), more=st.integers(0, 12), n_taps=st.integers(1, 9), seed=st.integers(0, 99))
def test_gradients_equal_those_of_the_plain_form(length, more, n_taps, seed):
    with jax.enable_x64(True):
        arguments = draw(length, n_taps, more, seed=seed)
        got, want = (value_and_gradients(f, *arguments) for f in (causal_filter, shifted_sum))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_sums_are_float32_where_the_input_is_narrower():
    (padded, taps), reach, dy = draw(300, 40, dtype="float32")
    want = value_and_gradients(shifted_sum, (padded, taps), reach, dy)
    narrow = (jnp.asarray(padded, jnp.bfloat16), jnp.asarray(taps))
    got = value_and_gradients(causal_filter, narrow, reach, jnp.asarray(dy, jnp.bfloat16))
    assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b in zip(got, want, strict=True):
        # The inputs alone are off by 2^-9 of themselves, without a bias that 300 terms could add up.
        assert np.abs(np.asarray(a, "float32") - b).max() < 0.02 * np.abs(b).max()
