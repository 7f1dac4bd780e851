"""The dense reference of causal attention, and the products that decoding shares with it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import tiles
from psann_jax.ops.tiles import NO_DROPOUT, Dropout

# End of the name of a kernel's example -> heads of queries per head of keys and values, sliding window.
EXAMPLE_OPTIONS = {"": (1, 0), "_grouped": (2, 0), "_window": (2, 50)}


class Static(NamedTuple):
    """What is fixed when an attention is compiled.

    Attributes:
      dropout_rate: of the attention weights.
      window: a query sees itself and the window - 1 tokens before it; 0: all tokens before it.
    """

    dropout_rate: float = 0.0
    window: int = 0


def scores(q_BxLxHxK: Array, k_BxSxGxK: Array) -> Array:
    """Returns q k^T / sqrt(K), (B, H, L, S), at least float32; query head h reads the key head h // (H / G)."""
    B, L, H, K = q_BxLxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scale = 1 / math.sqrt(K)
    if G == H:
        return scale * jnp.einsum("blhk,bshk->bhls", q_BxLxHxK, k_BxSxGxK, preferred_element_type=wide)
    q_BxLxGxRxK = q_BxLxHxK.reshape(B, L, G, -1, K)
    s_BxGxRxLxS = scale * jnp.einsum("blgrk,bsgk->bgrls", q_BxLxGxRxK, k_BxSxGxK, preferred_element_type=wide)
    return s_BxGxRxLxS.reshape(B, H, L, S)


def weighted_values(p_BxHxLxS: Array, v_BxSxGxK: Array) -> Array:
    """Returns p v, (B, L, H, K), in the type of the values; grouped like `scores`."""
    B, H, L, S = p_BxHxLxS.shape
    G, K = v_BxSxGxK.shape[2:]
    p_BxHxLxS = p_BxHxLxS.astype(v_BxSxGxK.dtype)
    if G == H:
        return jnp.einsum("bhls,bshk->blhk", p_BxHxLxS, v_BxSxGxK)
    p_BxGxRxLxS = p_BxHxLxS.reshape(B, G, -1, L, S)
    return jnp.einsum("bgrls,bsgk->blgrk", p_BxGxRxLxS, v_BxSxGxK).reshape(B, L, H, K)


def plain_attention(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    """Computes what `causal_attention` describes, from all scores at once; differentiated by JAX."""
    B, L, H, _ = q_BxLxHxK.shape
    lag_LxL, visible_BxHxLxL = tiles.window_visible(L, segment_ids_BxL, static.window)
    scores_BxHxLxL = scores(q_BxLxHxK, k_BxLxGxK)
    if slopes_H is not None:
        scores_BxHxLxL -= slopes_H[None, :, None, None] * lag_LxL[None, None]
    p_BxHxLxL = jax.nn.softmax(jnp.where(visible_BxHxLxL, scores_BxHxLxL, tiles.MASK_VALUE))
    if dropout_key is not None:
        p_BxHxLxL *= tiles.window_dropout_factors(dropout_key, static.dropout_rate, B, H, L)
    return weighted_values(p_BxHxLxL, v_BxLxGxK)


def exact_attention(
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None = None,
    dropout: Dropout = NO_DROPOUT,
    *,
    window: int = 0,
) -> Array:
    """Computes `plain_attention` in float32 at the highest precision of the device, for the examples of kernels."""
    q, k, v = (x.astype(jnp.float32) for x in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
    with jax.default_matmul_precision("highest"):
        static = Static(dropout.rate, window)
        return plain_attention(static, q, k, v, segment_ids_BxL, None, dropout.key).astype(q_BxLxHxK.dtype)
