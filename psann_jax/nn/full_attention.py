"""Attention from every position to all positions, on a mesh."""

import jax
import jax.numpy as jnp

from psann_jax.nn.partition import per_shard, shard_of
from psann_jax.ops import full_attention as ops
from psann_jax.ops.tiles import Dropout


def full_attention(q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, *, dropout: Dropout) -> jax.Array:
    """Applies `psann_jax.ops.full_attention.full_attention`, on a mesh to the part of each device."""
    B, L, H, K = q_BxLxHxK.shape
    axes = ("batch", None, "heads", None)
    rate, uneven = dropout.rate if dropout.key is not None else 0.0, shard_of(q_BxLxHxK.shape, axes)[1]
    chosen = ops.choose_full_attention(q_BxLxHxK.dtype, L, K, dropout_rate=rate, uneven=uneven)
    if chosen not in ops.KERNELS:
        return ops.full_attention(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, dropout=dropout, implementation=chosen)

    def apply(qkv: tuple[jax.Array, ...], row_B: jax.Array, head_H: jax.Array, key: jax.Array | None) -> jax.Array:
        part, drop = ops.Part(row_B[0], head_H[0], H), Dropout(key, dropout.rate)
        return ops.full_attention(*qkv, dropout=drop, implementation=chosen, part=part)

    in_axes = ((axes,) * 3, ("batch",), ("heads",), None if dropout.key is None else ())
    qkv = (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK)
    out: jax.Array = per_shard(apply, in_axes, axes)(qkv, jnp.arange(B), jnp.arange(H), dropout.key)
    return out
