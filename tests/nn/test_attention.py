"""Attention: its rotation on TPUs, norm of queries and keys, grouped heads, and a kernel with all options combined."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psann_jax.nn import attention as nn_attention
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.context import make_context
from psann_jax.nn.positions import halves_first, rope_tables, rotate, rotate_halves
from psann_jax.ops import kernels
from psann_jax.ops.attention import KERNELS
from psann_jax.ops.attention_triton import triton_attention

B, L, D, H = 2, 7, 24, 3


def rotary_context():
    context = make_context(jnp.zeros((B, L), jnp.int32), None)
    return replace(context, rope=rope_tables(context.reach_BxL, D // H, jnp.float32))


def test_reordered_features_are_rotated_like_pairs():
    x = jax.random.normal(jax.random.key(0), (B, L, D))
    tables = rope_tables(jnp.arange(L)[None], D // H, jnp.float32)
    want = rotate(x.reshape(B, L, H, -1), tables)
    got = rotate_halves(halves_first(x, H).reshape(B, L, H, -1), tables)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exchanging_halves_does_not_round(dtype):
    x, dy = jax.random.normal(jax.random.key(0), (2, B, L, H, D // H)).astype(dtype)
    zeros, ones = jnp.zeros((1, L, 1, D // H // 2)), jnp.ones((1, L, 1, D // H // 2))

    def exchanged(x):  # by a quarter turn: (a, b) becomes (-b, a)
        return rotate_halves(x, (zeros, ones))

    y, pull = jax.vjp(exchanged, x)
    a, b = jnp.split(x, 2, axis=-1)
    np.testing.assert_array_equal(y, jnp.concatenate([-b, a], axis=-1))
    a, b = jnp.split(dy, 2, axis=-1)
    np.testing.assert_array_equal(pull(dy)[0], jnp.concatenate([b, -a], axis=-1))


@pytest.mark.parametrize(
    "options", [{"bias": True}, {"bias": True, "causal": False}, {"qk_norm": True, "n_kv_heads": 1}]
)
def test_attention_with_reordered_parameters_equals_that_with_pairs(options, monkeypatch):
    layer, params = nnx.split(Attention(AttentionOptions(D, H, **options), rngs=nnx.Rngs(params=0)))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    x, dy = jax.random.normal(jax.random.key(1), (2, B, L, D))
    context = rotary_context()

    def outputs(platform):
        monkeypatch.setattr(kernels, "platform", lambda: platform)
        with kernels.using("plain"), kernels.recorded() as chosen:
            y, pull = jax.vjp(lambda p, x: nnx.merge(layer, p)(x, context, None, None)[0], params, x)
            return chosen["rotate"], (y, *pull(dy))

    (by_pairs, want), (by_halves, got) = outputs("cpu"), outputs("tpu")
    assert (by_pairs, by_halves) == ({"pairs"}, {"halves"})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "n_kv_heads": 1}])
def test_the_cache_holds_the_features_in_the_same_order(options, monkeypatch):
    """Keys of a prefill, by halves, meet queries of a decoding step, by pairs."""
    attention = Attention(AttentionOptions(D, H, **options), rngs=nnx.Rngs(params=0))
    if options:
        attention.k_norm.scale[...] = jnp.linspace(0.5, 2, D // H)
    x = jax.random.normal(jax.random.key(1), (B, L, D))
    context = rotary_context()
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    keys = [attention._queries_and_keys(x, context, cached=cached)[1] for cached in (True, False)]
    np.testing.assert_allclose(*keys, atol=1e-5)


def test_queries_and_keys_are_normalised_before_the_rotation():
    attention = Attention(AttentionOptions(D, H, n_kv_heads=1, qk_norm=True), rngs=nnx.Rngs(params=0))
    attention.q_norm.scale[...], attention.k_norm.scale[...] = jax.random.normal(jax.random.key(2), (2, D // H))
    x = jax.random.normal(jax.random.key(1), (B, L, D))
    context = rotary_context()
    for got, linear, norm in zip(
        attention._queries_and_keys(x, context, cached=False),
        (attention.q, attention.k),
        (attention.q_norm, attention.k_norm),
        strict=True,
    ):
        heads = np.asarray(linear(x)).reshape(B, L, -1, D // H)
        expected = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...])
        np.testing.assert_allclose(got, rotate(expected, context.rope), rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_the_size_of_the_input_with_normalised_queries_and_keys():
    attention = Attention(AttentionOptions(D, H, qk_norm=True), rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (B, L, D))
    out, larger = (attention(factor * x, rotary_context(), None, None)[0] for factor in (1.0, 100.0))
    np.testing.assert_allclose(larger, 100 * out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [1, 3])
def test_projections_and_cache_have_the_heads_of_keys_and_values_only(n_kv_heads):
    attention = Attention(AttentionOptions(D, H, n_kv_heads=n_kv_heads), rngs=nnx.Rngs(params=0))
    width = n_kv_heads * D // H
    shapes = [getattr(attention, name).kernel[...].shape for name in "qkvo"]
    assert shapes == [(D, D), (D, width), (D, width), (D, D)]
    assert attention.q_norm is attention.k_norm is None


@pytest.mark.parametrize("n_heads", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_dropout_window_and_grouped_heads_in_a_kernel_equal_plain(n_heads, monkeypatch):
    """Values and gradients of the layer; the masks of 150 tokens have borders within the row."""
    options = AttentionOptions(D, n_heads, n_kv_heads=2, qk_norm=True, window=40, dropout=0.3, output_dropout=0.1)
    layer, params = nnx.split(Attention(options, rngs=nnx.Rngs(params=0)))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    x, dy = jax.random.normal(jax.random.key(1), (2, 2, 150, D))
    context = make_context(jnp.zeros((2, 150), jnp.int32), jnp.stack([jnp.arange(150) // 60 + 1, jnp.ones(150, int)]))
    context = replace(context, rope=rope_tables(context.reach_BxL, D // n_heads, jnp.float32))
    monkeypatch.setitem(KERNELS, "triton", partial(triton_attention, interpret=True))
    cases = []

    def outputs(name, dropout_key):
        monkeypatch.setattr(nn_attention, "choose_attention", lambda _, case: cases.append(case) or name)

        def run(params, x):
            return nnx.merge(layer, params)(x, context, None, dropout_key)[0]

        @jax.jit
        def values_and_gradients(params, x):
            y, pull = jax.vjp(run, params, x)
            return y, *pull(dy)

        return values_and_gradients(params, x)

    key = jax.random.key(5)
    (got, want, undropped) = (outputs(*given) for given in (("triton", key), ("plain", key), ("plain", None)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
    assert np.abs(want[0] - undropped[0]).max() > 0.1
    assert [case.dropout for case in cases] == [0.3, 0.3, 0]
    assert {(case.group, case.window) for case in cases} == {(n_heads // 2, 40)}
