"""The dense reference of causal attention, and the products that decoding shares with it."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import tiles
from psann_jax.ops.tiles import NO_DROPOUT, Dropout


def scores(q_BxLxHxK: Array, k_BxSxHxK: Array) -> Array:
    """Returns q k^T / sqrt(K), (B, H, L, S), at least float32."""
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scale = 1 / math.sqrt(q_BxLxHxK.shape[-1])
    return scale * jnp.einsum("blhk,bshk->bhls", q_BxLxHxK, k_BxSxHxK, preferred_element_type=wide)


def weighted_values(p_BxHxLxS: Array, v_BxSxHxK: Array) -> Array:
    """Returns p v, (B, L, H, K), in the type of the values."""
    p_BxHxLxS = p_BxHxLxS.astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhls,bshk->blhk", p_BxHxLxS, v_BxSxHxK)


def plain_attention(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    """Computes what `causal_attention` describes, from all scores at once; differentiated by JAX."""
    B, L, H, _ = q_BxLxHxK.shape
    lag_LxL, visible_BxHxLxL = tiles.window_visible(L, segment_ids_BxL)
    scores_BxHxLxL = scores(q_BxLxHxK, k_BxLxHxK)
    if slopes_H is not None:
        scores_BxHxLxL -= slopes_H[None, :, None, None] * lag_LxL[None, None]
    p_BxHxLxL = jax.nn.softmax(jnp.where(visible_BxHxLxL, scores_BxHxLxL, tiles.MASK_VALUE))
    if dropout_key is not None:
        p_BxHxLxL *= tiles.window_dropout_factors(dropout_key, dropout_rate, B, H, L)
    return weighted_values(p_BxHxLxL, v_BxLxHxK)


def exact_attention(
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> Array:
    """Computes `plain_attention` in float32 at the highest precision of the device, for the examples of kernels."""
    q, k, v = (x.astype(jnp.float32) for x in (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK))
    with jax.default_matmul_precision("highest"):
        return plain_attention(dropout.rate, q, k, v, segment_ids_BxL, None, dropout.key).astype(q_BxLxHxK.dtype)
