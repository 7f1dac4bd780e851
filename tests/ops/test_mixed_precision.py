"""ops/mixed_precision.py against float64: values, and gradients that are sums of many terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.mixed_precision import add_bias, look_up, scale

DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
ROWS, FEATURES = 16_384, 8


def gradient(f, parameter, *arrays):
    """Gradient by the parameter of the sum of f's results times weights that are exact in 16 bits."""

    @jax.jit
    def value(parameter, g, *arrays):
        return jnp.sum(f(parameter, *arrays).astype(jnp.float32) * g)

    shape = jax.eval_shape(f, parameter, *arrays).shape
    g = jnp.asarray(np.random.default_rng(7).choice([0.25, 0.5, 1.0], shape), jnp.float32)
    return jax.jit(jax.grad(value))(parameter, g, *arrays), np.asarray(g, np.float64)


@DTYPES
def test_the_gradient_of_a_bias_is_summed_in_float32(dtype):
    x = jnp.zeros((4, ROWS // 4, FEATURES), dtype)
    got, g = gradient(lambda bias, x: add_bias(x, bias), jnp.ones(FEATURES), x)
    np.testing.assert_allclose(got, g.sum((0, 1)), rtol=1e-5)
    assert add_bias(x, jnp.ones(FEATURES)).dtype == dtype


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (FEATURES,), (4, ROWS // 4, 1)])
def test_a_factor_keeps_its_digits_and_its_gradient_is_summed_in_float32(dtype, shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1, 0.1, (4, ROWS // 4, FEATURES)), dtype)
    factor = jnp.full(shape, 1.3337, jnp.float32)
    got, g = gradient(lambda factor, x: scale(x, factor), factor, x)
    axes = {(1,): (0, 1, 2), (FEATURES,): (0, 1)}.get(shape, (2,))
    terms = g * np.asarray(x, np.float64)
    np.testing.assert_allclose(got, terms.sum(axes).reshape(shape), rtol=1e-5)
    scaled = scale(x, factor)
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(scaled, (np.asarray(x, np.float32) * np.float32(1.3337)).astype(dtype))
    assert np.mean(np.asarray(scaled != x * factor.astype(dtype))) > 0.1  # the factor is not rounded first


@DTYPES
def test_the_gradient_of_a_table_is_summed_in_float32_for_words_as_frequent_as_in_text(dtype):
    ids = np.minimum(np.random.default_rng(0).zipf(1.2, ROWS) - 1, 99)
    ids[: ROWS // 4] = 5
    table = jnp.asarray(np.random.default_rng(1).normal(size=(100, FEATURES)), jnp.float32)
    got, g = gradient(lambda table, ids: look_up(table, ids, dtype), table, jnp.asarray(ids))
    expected = np.zeros(table.shape)
    np.add.at(expected, ids, g)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(look_up(table, ids, dtype), table.astype(dtype)[ids])


def test_the_plain_rule_loses_most_of_such_a_sum():
    """The reason for this module; if it fails, JAX has changed and the module may go."""
    ids = jnp.zeros(4096, jnp.int32)
    got, g = gradient(lambda table, ids: table.astype(jnp.bfloat16)[ids], jnp.ones((4, 1)), ids)
    assert got[0, 0] < 0.3 * g.sum()


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 5), length=st.integers(1, 7), features=st.integers(1, 4), data=st.data())
def test_gradients_of_the_input_equal_the_plain_rule(rows, length, features, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = (rows, length, features)
    start = data.draw(st.integers(0, 2))
    parameter_shape = tuple(data.draw(st.sampled_from([1, n])) for n in shape[start:])
    x, g = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(2))
    parameter = jnp.asarray(rng.normal(size=parameter_shape), jnp.float32)
    for f, plain in ((add_bias, jnp.add), (scale, jnp.multiply)):
        y, transpose = jax.vjp(f, x, parameter)
        y_plain, transpose_plain = jax.vjp(lambda x, p, plain=plain: plain(x.astype(jnp.float32), p), x, parameter)
        np.testing.assert_allclose(y.astype(jnp.float32), y_plain, rtol=0.02, atol=0.02)
        dx, dparameter = transpose(g)
        dx_plain, dparameter_plain = transpose_plain(g.astype(jnp.float32))
        np.testing.assert_array_equal(dx, dx_plain)
        assert dparameter.shape == parameter_shape
        assert dparameter.dtype == jnp.float32
        np.testing.assert_allclose(dparameter, dparameter_plain, rtol=1e-5, atol=1e-5)


def test_in_float32_the_program_is_the_plain_one():
    x, factor, ids = jnp.ones((2, 3)), jnp.ones(3), jnp.ones(4, jnp.int32)
    for ours, plain in (
        (lambda x, p, _: add_bias(x, p), lambda x, p, _: x + p),
        (lambda x, p, _: scale(x, p), lambda x, p, _: x * p),
        (lambda x, _, ids: look_up(x, ids, jnp.float32), lambda x, _, ids: x[ids]),
    ):
        programs = [
            str(jax.make_jaxpr(jax.grad(lambda *a, f=f: f(*a).sum(), (0, 1)))(x, factor, ids)) for f in (ours, plain)
        ]
        assert programs[0] == programs[1]
