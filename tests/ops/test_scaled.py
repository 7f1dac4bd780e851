"""ops/scaled.py: Snake and scaled GELU against their references, and against values by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.scaled import SCALED, scaled_activation, scaled_activation_reference

every_name = pytest.mark.parametrize("name", SCALED)


def draw(shape, seed=0):
    """z, factors from 0.01 to 10, and the gradient of the result, in float64."""
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal(shape), 10 ** rng.uniform(-2, 1, shape[-1]), rng.standard_normal(shape)


def value_and_gradients(fn, name, z, factor, dy):
    @jax.jit
    def run(z, factor, dy):
        y, vjp = jax.vjp(partial(fn, name), z, factor)
        return y, vjp(dy.astype(y.dtype))

    return run(z, factor, dy)


def test_values_by_hand(x64):
    z, factor = np.array([-2.0, 0.0, 1.5]), np.array([0.5, 3.0, 2.0])
    snake = [x + math.sin(a * x) ** 2 / a for x, a in zip(z, factor, strict=True)]
    gelu = [c * x * 0.5 * (1 + math.erf(c * x / math.sqrt(2))) for x, c in zip(z, factor, strict=True)]
    for fn in (scaled_activation, scaled_activation_reference):
        np.testing.assert_allclose(fn("snake", z, factor), snake, rtol=1e-12)
        np.testing.assert_allclose(fn("scaled_gelu", z, factor), gelu, rtol=1e-12)


@every_name
@settings(deadline=None, max_examples=6)
@given(lead=st.lists(st.integers(1, 9), max_size=3), F=st.integers(1, 7), seed=st.integers(0, 99))
def test_equals_the_reference_in_float64(name, lead, F, seed):
    z, factor, dy = draw((*lead, F), seed)
    z.flat[0] = 0.0
    with jax.enable_x64(True):
        want = value_and_gradients(scaled_activation_reference, name, z, factor, dy)
        got = value_and_gradients(scaled_activation, name, z, factor, dy)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), got, want)


@every_name
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 6e-3), ("float16", 8e-4)])
def test_lower_precision(name, dtype, tolerance):
    z, factor, dy = draw((2, 300, 16))
    z, dy = (np.asarray(jnp.asarray(a, dtype)) for a in (z, dy))
    factor = factor.astype("float32")
    with jax.enable_x64(True):
        wide = (np.asarray(a, "float64") for a in (z, factor, dy))
        want = jax.device_get(value_and_gradients(scaled_activation_reference, name, *wide))
    y, (dz, dfactor) = value_and_gradients(scaled_activation, name, z, factor, dy)
    assert (y.dtype, dz.dtype, dfactor.dtype) == (dtype, dtype, "float32")
    # In float32, the rounding of factor * z, up to 100, is the largest error.
    for got, ref in ((y, want[0]), (dz, want[1][0])):
        error = np.abs(np.asarray(got, "float64") - ref)
        assert (error <= tolerance * (1 + np.abs(ref))).all()
    # The gradient of a factor is a float32 sum in every precision.
    np.testing.assert_allclose(dfactor, want[1][1], rtol=1e-4, atol=1e-4 * np.abs(want[1][1]).max())


@every_name
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3])
def test_extreme_factors_give_accurate_values_and_gradients(name, factor):
    z = np.linspace(-10, 10, 101, dtype="float32")[:, None]
    factor, dy = np.array([factor], "float32"), np.ones_like(z)
    with jax.enable_x64(True):
        want = value_and_gradients(scaled_activation_reference, name, *(a.astype("float64") for a in (z, factor, dy)))
    got = value_and_gradients(scaled_activation, name, z, factor, dy)
    # The rounding of factor * z moves the phase of the sine by up to 1e4 * 6e-8.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=3e-3, atol=3e-3), got, want)


def test_snake_never_decreases_and_stays_within_one_over_a_above_the_identity():
    z, a, _ = draw((1000, 5))
    z, a = np.sort(z, axis=0).astype("float32"), a.astype("float32")
    y = np.asarray(scaled_activation("snake", z, a))
    assert (np.diff(y, axis=0) >= -1e-6).all()
    assert (y >= z).all()
    assert (y <= z + 1 / a + 1e-6).all()
