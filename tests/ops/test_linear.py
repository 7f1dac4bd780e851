"""ops/linear.py: the matrix product against its reference."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops.linear import matmul, matmul_reference, wide_kernel_gradients


def value_and_gradients(fn, x, kernel, g):
    @jax.jit
    def run(x, kernel, g):
        y, vjp = jax.vjp(fn, x, kernel)
        return y, vjp(g.astype(y.dtype))

    return run(x, kernel, g)


def draw(shape, F, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal((shape[-1], F)), rng.standard_normal((*shape[:-1], F))


@settings(deadline=None, max_examples=8)
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), F=st.integers(1, 7))
def test_equals_the_reference(shape, F):
    with jax.enable_x64(True):
        args = draw(shape, F)
        got, want = (value_and_gradients(fn, *args) for fn in (matmul, matmul_reference))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 0.01)])
def test_lower_precision(dtype, tolerance):
    args = [jnp.asarray(a, dtype) for a in draw((2, 30, 8), 5)]
    with jax.enable_x64(True):
        want = value_and_gradients(matmul_reference, *(np.asarray(a, "float64") for a in args))
    for got, ref in zip(*map(jax.tree.leaves, (value_and_gradients(matmul, *args), want)), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, "float64"), ref, atol=tolerance * np.abs(ref).max())


@pytest.mark.parametrize(("D", "F"), [(16, 64), (64, 16)])
def test_the_kernel_gradient_does_not_transpose_its_wider_operand(D, F):
    x, kernel, g = (jnp.asarray(a, "float32") for a in draw((4, 32, D), F))
    gradient = jax.jit(lambda x, kernel, g: jax.vjp(matmul, x, kernel)[1](jax.nn.relu(g))[1])
    text = gradient.lower(jax.nn.relu(x), kernel, g).compile().as_text()
    assert re.search(r"= f32\[16,64\]\S* dot\(", text)
    assert "f32[64,128]" not in text


@pytest.mark.parametrize("wide", [False, True])
def test_wide_kernel_gradients_are_not_rounded(wide):
    x, kernel, g = (jnp.asarray(a, "bfloat16") for a in draw((4, 32, 24), 16))
    with wide_kernel_gradients(wide):
        _, (dx, dkernel) = value_and_gradients(matmul, x, kernel.astype("float32"), g)
    exact = np.einsum("brd,brf->df", *(np.asarray(a, "float64") for a in (x, g)))
    error = np.abs(np.asarray(dkernel, "float64") - exact).max() / np.abs(exact).max()
    assert dx.dtype == "bfloat16"
    assert dkernel.dtype == "float32"
    assert (error < 1e-6) == wide
    assert error < 0.01
