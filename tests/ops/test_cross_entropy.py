"""ops/cross_entropy.py: the chunked implementation against the reference, the reference against numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from psann_jax.ops import cross_entropy as module
from psann_jax.ops import kernels
from psann_jax.ops.cross_entropy import LossOptions, cross_entropy, cross_entropy_reference


def draw(B, L, D, V, seed=0):
    """x, kernel, targets, weights, bias; some tokens have weight 0 and an invalid target."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, (B, L))
    weights = rng.choice([0.0, 1.0, 0.5], (B, L))
    targets[weights == 0] = rng.choice([-100, V, 0], (weights == 0).sum())
    return rng.standard_normal((B, L, D)), rng.standard_normal((D, V)), targets, weights, rng.standard_normal(V)


def value_and_gradients(fn, x, kernel, targets, weights, bias=None, **kwargs):
    """Loss, statistics, and the gradients of 3 * loss by x, kernel, weights and bias."""

    @jax.jit
    def run(x, kernel, weights, bias, targets):
        def scaled(x, kernel, weights, bias):
            loss, stats = fn(x, kernel, targets, weights, bias_V=bias, **kwargs)
            return 3 * loss, (loss, stats)

        grads, (loss, stats) = jax.grad(scaled, (0, 1, 2, 3), has_aux=True)(x, kernel, weights, bias)
        return loss, stats, grads

    return run(x, kernel, weights, bias, targets)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_the_reference_equals_numpy(softcap, x64):
    x, kernel, targets, weights, bias = draw(2, 5, 3, 7)
    logits = x @ kernel + bias
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, targets.clip(0, 6)[..., None], -1)[..., 0]
    loss = 0.9 * nll + 0.1 * (lse - logits.mean(-1)) + 0.01 * lse**2
    got, stats = cross_entropy_reference(
        x, kernel, targets, weights, bias_V=bias, options=LossOptions(0.1, 0.01, softcap)
    )
    np.testing.assert_allclose(got, (weights * loss).sum())
    np.testing.assert_allclose(stats["nll"], (weights * nll).sum())
    np.testing.assert_allclose(stats["correct"], (weights * (logits.argmax(-1) == targets)).sum())
    np.testing.assert_allclose(stats["weight"], weights.sum())
    np.testing.assert_allclose(stats["nll_B"], (weights * nll).sum(1))
    np.testing.assert_allclose(stats["weight_B"], weights.sum(1))


@settings(deadline=None, max_examples=6)
@given(
    B=st.integers(1, 4),
    L=st.integers(1, 23),
    D=st.integers(1, 5),
    V=st.integers(2, 9),
    chunk=st.integers(1, 40),
    has_bias=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 0.3]),
    softcap=st.sampled_from([0.0, 1.5]),
)
def test_chunked_equals_the_reference(B, L, D, V, chunk, has_bias, label_smoothing, z_loss, softcap):
    x, kernel, targets, weights, bias = draw(B, L, D, V, seed=L)
    options = {"options": LossOptions(label_smoothing, z_loss, softcap)}
    with jax.enable_x64(True):
        args = (x, kernel, targets, weights, bias if has_bias else None)
        want = value_and_gradients(cross_entropy_reference, *args, **options)
        got = value_and_gradients(cross_entropy, *args, **options, chunk_tokens=chunk)
        evaluate = jax.jit(partial(cross_entropy, **options, chunk_tokens=chunk))
        evaluated = evaluate(*args[:4], bias_V=args[4])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), evaluated, want[:2])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("float16", 3e-3)])
def test_lower_precision(dtype, tolerance):
    x, kernel, targets, weights, bias = draw(2, 50, 16, 300)
    x, kernel = (jnp.asarray(a, dtype).astype("float32") for a in (x, kernel / 4))
    with jax.enable_x64(True):
        wide = (np.asarray(a, "float64") for a in (x, kernel))
        want = value_and_gradients(cross_entropy_reference, *wide, targets, weights, bias)
    weights, bias = weights.astype("float32"), bias.astype("float32")
    for kernel_dtype in (dtype, "float32"):
        args = (x.astype(dtype), kernel.astype(kernel_dtype), targets, weights, bias)
        loss, stats, grads = value_and_gradients(cross_entropy, *args, chunk_tokens=16)
        assert loss.dtype == stats["nll"].dtype == jnp.float32
        assert [g.dtype for g in grads] == [dtype, kernel_dtype, "float32", "float32"]
        np.testing.assert_allclose(loss, want[0], rtol=1e-5)
        for got, ref in zip(grads, want[2], strict=True):
            np.testing.assert_allclose(np.asarray(got, "float64"), ref, atol=tolerance * np.abs(ref).max())


def test_fp16_gradients_do_not_underflow():
    # A mean over 2^16 tokens; many of 2000 classes have a probability below 6e-8, the smallest positive fp16 number.
    x, kernel, targets, _, _ = draw(2, 8, 8, 2000)
    x, kernel = (jnp.asarray(1.5 * a, "float16") for a in (x, kernel))

    def gradients(x, kernel):
        def scaled_mean(x, kernel):
            loss, _ = cross_entropy(x, kernel, targets.clip(0, 1999), jnp.ones(targets.shape))
            return 2.0**20 * (loss / 2**16)

        return jax.grad(scaled_mean, (0, 1))(x, kernel)

    with jax.enable_x64(True):
        want = gradients(*(np.asarray(a, "float64") for a in (x, kernel)))
    with jax.disable_jit():  # compiled, XLA's CPU backend would skip the rounding to fp16
        got = gradients(x, kernel.astype("float32"))
    for a, b in zip(got, want, strict=True):
        error = np.abs(np.asarray(a, "float64") - np.asarray(b)) / np.abs(np.asarray(b))
        assert error.mean() < 0.005


def test_only_targets_of_weight_zero_may_be_invalid():
    x, kernel, targets, _, _ = draw(2, 6, 3, 7)
    targets = targets.clip(0, 6)
    weights = np.ones((2, 6), "float32")
    weights[0, 2] = 0
    want = value_and_gradients(cross_entropy, x, kernel, targets, weights)
    for ignored in (-100, 7, 10**6):
        targets[0, 2] = ignored
        got = value_and_gradients(cross_entropy, x, kernel, targets, weights)
        # The gradient of a weight is the loss of its token, which is undefined for an invalid target.
        jax.tree.map(np.testing.assert_array_equal, (got[:2], got[2][:2]), (want[:2], want[2][:2]))
        assert np.isfinite(got[2][2]).all()
    for bad in (-1, 7):
        targets[0, 1] = bad
        assert np.isnan(cross_entropy(x, kernel, targets, weights)[0])


def test_a_tie_counts_as_wrong():
    x, targets, weights = np.ones((1, 3, 1)), np.array([[0, 1, 2]]), np.ones((1, 3))
    for kernel, correct in (([[0, 0, 0]], 0), ([[1, 2, 0]], 1), ([[2, 2, 1]], 0)):
        _, stats = cross_entropy(x, np.array(kernel, "float32"), targets, weights)
        assert stats["correct"] == correct


def primitives(jaxpr):
    """All equations, including nested ones."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from primitives(sub)


def test_no_logits_of_the_whole_batch_and_no_gradient_work_in_evaluation():
    B, L, D, V = 2, 64, 3, 50
    x, kernel, targets, weights, _ = draw(B, L, D, V)

    def loss(x, kernel):
        return cross_entropy(x, kernel, targets, weights, options=LossOptions(0.1), chunk_tokens=16)[0]

    counts = []
    for fn in (loss, jax.grad(loss, (0, 1))):
        equations = list(primitives(jax.make_jaxpr(fn)(x, kernel).jaxpr))
        assert max(v.aval.size for e in equations for v in e.outvars) <= 16 * V
        counts.append(sum(e.primitive.name == "dot_general" for e in equations))
    assert counts == [1, 3]


def test_under_scan_over_micro_batches_and_checkpoint():
    x, kernel, targets, weights, bias = (jnp.asarray(a, "float32") for a in draw(4, 10, 3, 7))
    targets = targets.astype(int)

    def direct(kernel, bias):
        return cross_entropy_reference(jnp.tanh(x), kernel, targets, weights, bias_V=bias)[0]

    def accumulated(kernel, bias):
        @jax.checkpoint
        def loss(kernel, bias, x, targets, weights):
            return cross_entropy(jnp.tanh(x), kernel, targets, weights, bias_V=bias, chunk_tokens=6)[0]

        def body(total, batch):
            value, grads = jax.value_and_grad(loss, (0, 1))(kernel, bias, *batch)
            return jax.tree.map(jnp.add, total, (value, grads)), None

        zero = (jnp.zeros(()), (jnp.zeros_like(kernel), jnp.zeros_like(bias)))
        batches = tuple(a.reshape(2, 2, *a.shape[1:]) for a in (x, targets, weights))
        return jax.lax.scan(body, zero, batches)[0]

    want = jax.value_and_grad(direct, (0, 1))(kernel, bias)
    got = jax.jit(accumulated)(kernel, bias)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("rows", [6, 5])
def test_gradients_are_added_by_groups_of_devices(rows, monkeypatch, x64):
    """On accelerators each group adds up its own chunks; without equal groups, chunks are added as on one device."""
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "replicas", lambda: 3)
    args = draw(rows, 10, 4, 7)
    got = value_and_gradients(cross_entropy, *args, chunk_tokens=12)
    jax.tree.map(np.testing.assert_allclose, got, value_and_gradients(cross_entropy_reference, *args))
    program = str(jax.make_jaxpr(partial(value_and_gradients, cross_entropy, chunk_tokens=12))(*args))
    assert ("[3,4,7]" in program) == (rows == 6)


def test_the_chunk_depends_on_the_devices_of_the_mesh(monkeypatch):
    B, L = 8, 4096
    args = draw(B, L, 4, 16)[:4]
    chunks = []
    monkeypatch.setattr(module, "_cross_entropy", lambda options, *_: chunks.append(options.n_chunks))
    cross_entropy(*args)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"))):
        cross_entropy(*args)
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    cross_entropy(*args)
    n = jax.device_count()
    assert chunks == [B * L // (512 * n), B * L // (512 * 4), B * L // (4096 * n)]


@pytest.mark.parametrize("offset", [300.0, 1e4])
def test_large_logits_cost_no_digits(offset):
    x, kernel, targets, weights, _ = draw(2, 3, 4, 9)
    x, kernel = (jnp.asarray(np.round(8 * a) / 8, jnp.float32) for a in (x, kernel))  # so that the logits are exact
    (loss, _), (shifted, _) = (
        cross_entropy(x, kernel, targets, weights, bias_V=bias) for bias in (jnp.zeros(9), jnp.full(9, offset))
    )
    np.testing.assert_allclose(shifted, loss, rtol=1e-6)
