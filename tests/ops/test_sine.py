"""ops/sine.py: the damped sine against its reference and against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.ops import kernels, sine, sine_triton
from psann_jax.ops.sine import damped_sine, damped_sine_reference
from tests.support.devices import pretend
from tests.support.kernels import differences

MODES = ("abs", "relu", "none")
# As in normal use. The suite's lower optimisation level has no fused multiply-adds, which change the last bits.
optimized_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
fuzz = settings(deadline=None, max_examples=6)


def draw(shape, dtype="float64", seed=0, spread=2.0):
    """z; A, f and d; and the gradient of the output, as numpy arrays."""
    rng = np.random.default_rng(seed)
    F = shape[-1]
    z = (spread * rng.standard_normal(shape)).astype(dtype)
    params = [rng.uniform(lo, hi, F) for lo, hi in ((0.3, 2), (0.2, 4), (0.001, 0.5))]
    return z, [p.astype("float64" if dtype == "float64" else "float32") for p in params], rng.standard_normal(shape)


def value_and_gradients(fn, z, params, dy, **kwargs):
    @optimized_jit
    def run(dy, *args):
        y, vjp = jax.vjp(partial(fn, **kwargs), *args)
        return y, vjp(dy.astype(y.dtype))

    return run(dy, z, *params)


def test_values_of_the_original():
    A, f, d = jnp.array([1, 0.5, 2]), jnp.array([1, 2.25, 0.5]), jnp.array([0.1, 0.01, 0.001])
    z = jnp.array([[-1.5, 0.3, 2], [0.7, -2.2, -0.1]])
    want = {
        "abs": [[-0.858552, 0.311513, 1.679582], [0.600665, 0.475377, -0.099949]],
        "relu": [[-0.997495, 0.311513, 1.679582], [0.600665, 0.485951, -0.099959]],
        "none": [[-0.997495, 0.312449, 1.682944], [0.644218, 0.485951, -0.099959]],
    }
    for mode in MODES:
        for fn in (damped_sine, damped_sine_reference):
            np.testing.assert_allclose(fn(z, A, f, d, decay_mode=mode), want[mode], atol=5e-6)


@fuzz
@given(
    lead=st.lists(st.integers(1, 9), max_size=3),
    F=st.integers(1, 7),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_in_float64(lead, F, mode, seed):
    z, params, dy = draw((*lead, F), seed=seed)
    z.flat[0] = 0.0
    with jax.enable_x64(True):
        want = value_and_gradients(damped_sine_reference, z, params, dy, decay_mode=mode)
        got = value_and_gradients(damped_sine, z, params, dy, decay_mode=mode)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize("shape", [(5,), (11, 3), (2, 11, 3), (2, 3, 11, 3)])
def test_blocks_of_the_backward_pass_equal_the_whole(shape, x64, monkeypatch):
    z, params, dy = draw(shape)
    gradients = partial(sine._gradients, "abs", lambda x: (jnp.sin(x), jnp.cos(x)))
    want = gradients(z, *params, dy)
    for positions in (1, 4, 11, 100):  # per block
        monkeypatch.setattr(sine, "_BLOCK", positions * z.size // z.shape[-2] if z.ndim > 1 else 1)
        got = sine.by_blocks(gradients, z, *params, dy)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


@fuzz
@given(
    B=st.integers(1, 4),
    L=st.integers(1, 70),
    mode=st.sampled_from(MODES),
    spread=st.sampled_from([0.1, 2.0, 50.0]),
)
def test_equals_the_float64_reference_in_float32(B, L, mode, spread):
    z, params, dy = draw((B, L, 5), "float32", seed=L, spread=spread)
    with jax.enable_x64(True):
        wide = [p.astype("float64") for p in params]
        want = value_and_gradients(damped_sine_reference, z.astype("float64"), wide, dy, decay_mode=mode)
    y, grads = value_and_gradients(damped_sine, z, params, dy.astype("float32"), decay_mode=mode)
    # The rounding of f * z alone changes the phase by up to 2^-24 of itself.
    phase = 2e-6 + 2**-23 * np.abs(params[1] * z).max()
    np.testing.assert_allclose(y, want[0], atol=2 * phase)
    for got, ref in zip(grads, want[1], strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, ref, atol=4 * phase * max(1, np.abs(ref).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_in_float32(dtype):
    z, params, dy = draw((3, 40, 6), "float32")
    z, dy = jnp.asarray(z, dtype), jnp.asarray(dy, dtype)
    y, grads = value_and_gradients(damped_sine, z, params, dy)
    want, want_grads = value_and_gradients(damped_sine, z.astype("float32"), params, dy.astype("float32"))
    assert y.dtype == grads[0].dtype == dtype
    np.testing.assert_array_equal(y, want.astype(dtype))
    np.testing.assert_array_equal(grads[0], want_grads[0].astype(dtype))
    for got, ref in zip(grads[1:], want_grads[1:], strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, ref, rtol=1e-6)


@pytest.mark.parametrize(("reach", "error"), [(2, 1.5e-7), (50, 2e-7), (1e4, 1e-6), (2.5e4, 2e-6)])
def test_fast_sincos_is_accurate(reach, error):
    x = np.random.default_rng(0).uniform(-reach, reach, 500_000).astype("float32")
    sin, cos = optimized_jit(sine.fast_sincos)(x)
    np.testing.assert_allclose(sin, np.sin(x.astype("float64")), atol=error, rtol=0)
    np.testing.assert_allclose(cos, np.cos(x.astype("float64")), atol=error, rtol=0)


def test_fast_sincos_is_accurate_for_small_arguments():
    x = np.array([1e-30, 1e-8, 1e-3, 0.1], "float32")
    for signed in (x, -x):
        np.testing.assert_allclose(jax.jit(sine.fast_sincos)(signed)[0], np.sin(signed.astype("float64")), rtol=2e-7)


def test_huge_and_non_finite_arguments():
    huge = np.random.default_rng(0).uniform(-1, 1, 10_000) * 10.0 ** np.linspace(4, 38, 10_000)
    sin, cos = jax.jit(sine.fast_sincos)(huge.astype("float32"))
    assert max(np.abs(sin).max(), np.abs(cos).max()) <= 1 + 2e-7
    one = jnp.ones(1)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        z = jnp.full((2, 1), bad)
        assert jnp.isnan(damped_sine(z, one, one, one, decay_mode="none")).all()
        assert jnp.isnan(jax.jit(jax.grad(lambda z: damped_sine(z, one, one, one).sum()))(z)).all()


def test_the_kernel_is_chosen_for_the_devices_of_the_mesh(monkeypatch):
    for platform, name in (("cpu", "polynomial"), ("tpu", "polynomial"), ("gpu", "triton")):
        pretend(monkeypatch, platform)
        assert sine.choose_sine(jnp.bfloat16) == sine.choose_sine(jnp.float32) == name
        assert sine.choose_sine(jnp.float64) == "polynomial"
    with kernels.using("plain"):
        assert sine.choose_sine(jnp.float32) == "polynomial"


def test_the_loop_over_blocks_is_chosen_when_the_program_is_lowered():
    z, params, _ = draw((4, 3), "float32")
    traced = jax.jit(jax.grad(lambda z: damped_sine(z, *params).sum())).trace(z)
    for platform, blocks in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.sine" not in text
        assert ("stablehlo.while" in text) == blocks


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(sine_triton, "gradients", partial(sine_triton.gradients, interpret=True))


@pytest.mark.parametrize(
    ("shape", "mode", "dtype"),
    [
        ((5,), "abs", "float32"),
        ((1, 1), "relu", "bfloat16"),
        ((3, 200), "none", "float32"),
        ((2, 129, 7), "abs", "bfloat16"),
        ((1, 16, 128), "relu", "float32"),
        ((257, 130), "none", "bfloat16"),
        ((257, 130), "abs", "float32"),
    ],
)
def test_the_gpu_kernel_equals_the_reference(shape, mode, dtype, interpreted):
    z, params, dy = draw(shape, "float32", seed=len(shape))
    z.flat[0] = 0.0
    z, dy = jnp.asarray(z, dtype), jnp.asarray(dy, dtype)
    want = value_and_gradients(damped_sine_reference, z, params, dy, decay_mode=mode)
    got = value_and_gradients(damped_sine, z, params, dy, decay_mode=mode, implementation="triton")
    error = 3e-6 if dtype == "float32" else 1e-2
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        scale = max(1, np.abs(np.asarray(b, "float32")).max())
        np.testing.assert_allclose(np.asarray(a, "float32"), np.asarray(b, "float32"), atol=error * scale)


@pytest.mark.parametrize("mode", ["abs", "relu", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_examples_of_the_gpu_kernel_pass(mode, dtype, interpreted):
    example = kernels.EXAMPLES["sine.triton"](mode, dtype)
    assert max(differences(example)) < 0.8


@pytest.mark.parametrize(("reach", "error"), [(2, 1.5e-7), (50, 2e-7), (1e4, 1e-6), (2.5e4, 2e-6)])
def test_the_sine_of_the_gpu_kernel_is_accurate(reach, error):
    x = np.concatenate([np.random.default_rng(0).uniform(-reach, reach, 100_000), [0, 1e-30, -1e-30]])
    x = x.astype("float32")
    sin, cos = optimized_jit(sine._sincos_by_floor)(x)
    np.testing.assert_allclose(sin, np.sin(x.astype("float64")), atol=error, rtol=0)
    np.testing.assert_allclose(cos, np.cos(x.astype("float64")), atol=error, rtol=0)


def test_only_z_and_the_parameters_are_saved_for_the_backward_pass():
    z, params, _ = draw((5, 11, 3), "float32")
    _, vjp = jax.vjp(damped_sine, z, *params)
    assert sorted(leaf.size for leaf in jax.tree.leaves(vjp)) == [3, 3, 3, z.size]


def test_under_checkpoint_scan_and_vmap():
    z, params, dy = draw((2, 4, 16, 3), "float32")
    stacked = [jnp.stack([p, 1.1 * p]) for p in params]

    def one_by_one(z, *params):
        return jnp.stack([damped_sine(z[i], *(p[i] for p in params)) for i in range(2)])

    def vmapped(z, *params):
        return jax.vmap(damped_sine)(z, *params)

    def scanned(z, *params):
        body = jax.checkpoint(lambda _, layer: (None, damped_sine(*layer)))
        return jax.lax.scan(body, None, (z, *params))[1]

    want = value_and_gradients(one_by_one, z, stacked, dy)
    for fn in (vmapped, scanned, jax.jit(scanned)):
        got = value_and_gradients(fn, z, stacked, dy)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)
