"""Attention from every position to all positions, for short windows such as the 81 cells of a Sudoku grid."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops.dropout import dropout as drop
from psann_jax.ops.tiles import NO_DROPOUT, Dropout


def attention_weights(q_BxLxHxK: Array, k_BxLxHxK: Array) -> Array:
    """Returns softmax(q k^T / sqrt(K)), (B, H, L queries, L keys), in float32 or wider."""
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scaled = q_BxLxHxK / math.sqrt(q_BxLxHxK.shape[-1])
    return jax.nn.softmax(jnp.einsum("blhk,bmhk->bhlm", scaled, k_BxLxHxK, preferred_element_type=wide))


def full_attention(q_BxLxHxK: Array, k_BxLxHxK: Array, v_BxLxHxK: Array, *, dropout: Dropout = NO_DROPOUT) -> Array:
    """Computes softmax(q k^T / sqrt(K)) v over all positions.

    Args:
      q_BxLxHxK: queries.
      k_BxLxHxK: keys.
      v_BxLxHxK: values.
      dropout: of the attention weights.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    weights = attention_weights(q_BxLxHxK, k_BxLxHxK).astype(v_BxLxHxK.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", drop(weights, dropout.rate, dropout.key), v_BxLxHxK)
