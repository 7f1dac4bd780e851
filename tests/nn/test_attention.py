"""The rotation of queries and keys on TPUs, where their features are reordered in the parameters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.context import make_context
from psann_jax.nn.positions import halves_first, rope_tables, rotate, rotate_halves
from psann_jax.ops import kernels

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


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_reordered_parameters_equals_that_with_pairs(causal, monkeypatch):
    layer, params = nnx.split(Attention(AttentionOptions(D, H, causal=causal, bias=True), rngs=nnx.Rngs(params=0)))
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


def test_the_cache_holds_the_features_in_the_same_order(monkeypatch):
    """Keys of a prefill, by halves, meet queries of a decoding step, by pairs."""
    attention = Attention(AttentionOptions(D, H), rngs=nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (B, L, D))
    context = rotary_context()
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    keys = [attention._queries_and_keys(x, context, cached=cached)[1] for cached in (True, False)]
    np.testing.assert_allclose(*keys, atol=1e-5)
