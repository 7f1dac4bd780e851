"""ops/causal_filter.py against a loop over tokens and taps; its gradients against JAX's of the reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psann_jax.nn.positions import document_reach
from psann_jax.ops import causal_filter as ops
from psann_jax.ops import causal_filter_mosaic, causal_filter_triton, kernels
from psann_jax.ops.causal_filter import causal_filter, next_history, padded_filter, padded_filter_reference
from tests.support.devices import pretend
from tests.support.kernels import differences


def by_loop(x, taps, segment_ids, dilation):
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
    np.testing.assert_allclose(y, by_loop(x, taps, segment_ids, dilation), atol=1e-5)


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


def test_history_skips_padding():
    x = jnp.arange(12.0).reshape(2, 6, 1)
    history = next_history(jnp.full((2, 3, 1), -1.0), x, jnp.array([2, 6]))
    np.testing.assert_array_equal(history[..., 0], [[-1, 0, 1], [9, 10, 11]])


def draw(length, n_taps, more=0, dtype="float64", seed=0):
    """Input preceded by earlier positions, taps, reach, and a gradient of the output."""
    history = min(n_taps - 1, length) + more
    rng = np.random.default_rng(seed)
    padded = rng.normal(size=(2, history + length, 3)).astype(dtype)
    taps = rng.normal(size=(n_taps, 3)).astype(dtype)
    segment_ids = 1 + np.cumsum(rng.random((2, length)) < 0.2, axis=1)
    # The first document may have started before the window.
    reach = np.asarray(document_reach(jnp.asarray(segment_ids))) + history * (segment_ids == segment_ids[:, :1])
    return (padded, taps), reach, rng.normal(size=(2, length, 3)).astype(dtype)


def value_and_gradients(function, inputs, reach, dy):
    @jax.jit  # else every operation would be compiled separately for every size
    def run(inputs, reach, dy):
        y, pullback = jax.vjp(lambda *args: function(*args, reach), *inputs)
        return y, *pullback(dy)

    return run(tuple(map(jnp.asarray, inputs)), jnp.asarray(reach), jnp.asarray(dy))


@settings(max_examples=5, deadline=None)
@example(length=2, more=0, n_taps=4, seed=0)  # taps that reach past the beginning
@given(length=st.integers(1, 40), more=st.integers(0, 12), n_taps=st.integers(1, 9), seed=st.integers(0, 99))
def test_gradients_equal_those_of_the_reference(length, more, n_taps, seed):
    with jax.enable_x64(True):
        arguments = draw(length, n_taps, more, seed=seed)
        got, want = (value_and_gradients(f, *arguments) for f in (padded_filter, padded_filter_reference))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_bfloat16_inputs_are_summed_in_float32():
    (padded, taps), reach, dy = draw(300, 40, dtype="float32")
    want = value_and_gradients(padded_filter_reference, (padded, taps), reach, dy)
    narrow = (jnp.asarray(padded, jnp.bfloat16), jnp.asarray(taps))
    got = value_and_gradients(padded_filter, narrow, reach, jnp.asarray(dy, jnp.bfloat16))
    assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b in zip(got, want, strict=True):
        # Only the inputs are rounded, by up to 2^-9 and without bias, so 300 terms do not accumulate an error.
        assert np.abs(np.asarray(a, "float32") - b).max() < 0.02 * np.abs(b).max()


def test_the_implementation_is_chosen_for_the_devices_of_the_mesh(monkeypatch):
    def choices():
        for platform in ("cpu", "gpu", "tpu"):
            pretend(monkeypatch, platform)
            yield {
                "64 taps": ops.choose_filter(jnp.bfloat16, 64),
                "3 taps": ops.choose_filter(jnp.bfloat16, 3),
                "apart": ops.choose_filter(jnp.bfloat16, 64, dilation=2),
                "float64": ops.choose_filter(jnp.float64, 64),
                "many": ops.choose_filter(jnp.float32, 129),
            }

    cpu, gpu, tpu = choices()
    assert cpu == dict.fromkeys(cpu, "sums") | {"apart": "autodiff"}
    assert gpu == dict.fromkeys(cpu, "autodiff") | {"64 taps": "triton", "many": "triton"}
    assert tpu == dict.fromkeys(cpu, "autodiff") | {"64 taps": "mosaic"}
    with kernels.using("plain"):
        assert ops.choose_filter(jnp.bfloat16, 64) == "autodiff"


@pytest.fixture
def interpreted(monkeypatch):
    for module in (causal_filter_triton, causal_filter_mosaic):
        for name in ("forward", "gradients"):
            monkeypatch.setattr(module, name, partial(getattr(module, name), interpret=True))


def documents(*lengths):
    return np.concatenate([np.arange(n) for n in lengths])


KERNEL_CASES = {
    # length, features, taps, reach: borders on and beside those of tiles, documents of length 1
    "one tile": (64, 64, 5, documents(1, 62, 1)),
    "odd": (131, 70, 9, documents(63, 1, 1, 66)),
    "tiles": (300, 130, 12, documents(255, 1, 1, 43)),
    "border": (512, 3, 7, documents(256, 256)),
    "short": (3, 5, 30, documents(3)),
    "far": (520, 2, 65, documents(520)),
}


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in ("far", "tiles") else case for case in KERNEL_CASES]
)
def test_the_kernels_equal_the_reference(kernel, case, interpreted):
    L, D, K, reach = KERNEL_CASES[case]
    rng = np.random.default_rng(0)
    x, taps, dy = (rng.normal(size=size).astype("float32") for size in ((2, L, D), (K, D), (2, L, D)))
    reach = np.stack([reach, np.arange(L)])
    f = partial(causal_filter, max_shift=K - 1)
    want = value_and_gradients(partial(f, implementation="autodiff"), (x, taps), reach, dy)
    for dtype, error in (("float32", 1e-5), ("bfloat16", 2e-2)):
        narrow = jnp.asarray(x, dtype), jnp.asarray(taps)
        got = value_and_gradients(partial(f, implementation=kernel), narrow, reach, jnp.asarray(dy, dtype))
        assert [a.dtype for a in got] == [dtype, dtype, "float32"]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(np.asarray(a, "float32"), b, atol=error * np.abs(b).max())


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
def test_a_kernel_keeps_documents_apart(kernel, interpreted):
    """Elements of another document do not enter, even if they are not finite."""
    rng = np.random.default_rng(0)
    x, taps = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 140, 3), (9, 3)))
    reach = jnp.asarray(documents(70, 70))[None]
    f = partial(causal_filter, max_shift=8, implementation=kernel)
    poisoned = x.at[:, :70].set(jnp.nan)
    np.testing.assert_array_equal(f(poisoned, taps, reach)[:, 70:], f(x, taps, reach)[:, 70:])


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
@pytest.mark.parametrize("cut", [1, 30, 69])
def test_the_kernels_continue_a_row(kernel, cut, interpreted):
    rng = np.random.default_rng(cut)
    x, taps = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 70, 8), (12, 8)))
    reach = jnp.stack([jnp.arange(70), jnp.arange(70) % 25])
    whole = causal_filter(x, taps, reach, max_shift=11, implementation="autodiff")
    history = next_history(jnp.zeros((2, 11, 8)), x[:, :cut], jnp.array([cut, cut]))
    rest = causal_filter(x[:, cut:], taps, reach[:, cut:], max_shift=11, history_BxWxD=history, implementation=kernel)
    np.testing.assert_allclose(rest, whole[:, cut:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
@pytest.mark.parametrize(("dtype", "n_taps"), [("float32", 12), pytest.param("bfloat16", 64, marks=pytest.mark.slow)])
def test_the_examples_of_the_kernels_pass(kernel, dtype, n_taps, interpreted):
    example = kernels.EXAMPLES[f"causal_filter.{kernel}"](dtype, n_taps)
    assert max(differences(example)) < 0.8
