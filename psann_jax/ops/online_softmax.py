"""Causal softmax attention over tiles of scores, in memory linear in length.

Every attention that can compute the masked scores of one tile and differentiate them gets its forward and backward
pass here. B batch, H heads, n tiles of T tokens, K features per head.

Source: Dao, "FlashAttention-2", 2023.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.tiles import MASK_VALUE, Dropout, dropout_factors, set_tile, tile_pairs

Tile = TypeVar("Tile")
Sums = TypeVar("Sums")


def forward(
    scores: Callable[[Array, Array], Array], v_nxBxHxTxK: Array, dropout: Dropout, dtype: Any
) -> tuple[Array, Array]:
    """Computes softmax(scores) @ v with a running maximum, sum and accumulator per query.

    Args:
      scores: returns the scores of query tile i and key tile j, (B, H, T, T), with `MASK_VALUE` where masked. Each
        query must see at least one key of the tile on the diagonal.
      v_nxBxHxTxK: values.
      dropout: dropout of the softmax weights.
      dtype: type of scores, softmax and accumulator.

    Returns:
      The output, (n, B, H, T, K) in the type of the values, and the logsumexp of the scores, (n, B, H, T).
    """
    n, B, H, T, K = v_nxBxHxTxK.shape

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse = carry
        i, j = pair
        first = j == 0
        s_BxHxTxT = scores(i, j)
        previous_max_BxHxT = jnp.where(first, MASK_VALUE, max_BxHxT)
        max_BxHxT = jnp.maximum(previous_max_BxHxT, s_BxHxTxT.max(-1))
        p_BxHxTxT = jnp.exp(s_BxHxTxT - max_BxHxT[..., None])
        rescale_BxHxT = jnp.where(first, 0, jnp.exp(previous_max_BxHxT - max_BxHxT))
        sum_BxHxT = sum_BxHxT * rescale_BxHxT + p_BxHxTxT.sum(-1)
        if dropout.key is not None:
            p_BxHxTxT *= dropout_factors(dropout.key, dropout.rate, p_BxHxTxT.shape, i, j)
        p_BxHxTxT = p_BxHxTxT.astype(v_nxBxHxTxK.dtype)
        pv_BxHxTxK = jnp.einsum("bhij,bhjk->bhik", p_BxHxTxT, v_nxBxHxTxK[j], preferred_element_type=dtype)
        acc_BxHxTxK = acc_BxHxTxK * rescale_BxHxT[..., None] + pv_BxHxTxK
        # Each key tile overwrites the result of the one before it; the last one, on the diagonal, is final.
        out = set_tile(out, (acc_BxHxTxK / sum_BxHxT[..., None]).astype(out.dtype), i)
        lse = set_tile(lse, max_BxHxT + jnp.log(sum_BxHxT), i)
        return (max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse), None

    row = jnp.zeros((B, H, T), dtype)
    init = (row, row, jnp.zeros((B, H, T, K), dtype), jnp.zeros_like(v_nxBxHxTxK), jnp.zeros((n, B, H, T), dtype))
    (*_, out_nxBxHxTxK, lse_nxBxHxT), _ = lax.scan(step, init, tile_pairs(n))
    return out_nxBxHxTxK, lse_nxBxHxT


def backward(
    tile: Callable[[Array, Array], tuple[Array, Tile]],
    add_gradients: Callable[[Sums, Array, Array, Tile, Array, Array], Sums],
    init: Sums,
    v_nxBxHxTxK: Array,
    dropout: Dropout,
    saved: tuple[Array, Array],
    dout_nxBxHxTxK: Array,
) -> tuple[Sums, Array]:
    """Differentiates `forward`, with the scores recomputed tile by tile.

    Args:
      tile: returns the scores of tile (i, j), equal to those of the forward pass, and anything that `add_gradients`
        needs besides.
      add_gradients: takes (sums, i, j, tile, p, slope) and returns the sums with the gradients from tile (i, j) added.
        p is the softmax and p * slope the gradient of the scores, both (B, H, T, T).
      init: initial sums, a pytree.
      v_nxBxHxTxK: values.
      dropout: as in the forward pass.
      saved: output and logsumexp of the forward pass.
      dout_nxBxHxTxK: gradient of the output.

    Returns:
      The sums over all tiles, and the gradient of the values, (n, B, H, T, K) in the type of the logsumexp.
    """
    out_nxBxHxTxK, lse_nxBxHxT = saved
    dtype = lse_nxBxHxT.dtype
    delta_nxBxHxT = (dout_nxBxHxTxK.astype(dtype) * out_nxBxHxTxK).sum(-1)
    doutT_nxBxHxKxT = transposed(dout_nxBxHxTxK)
    dot = partial(jnp.einsum, preferred_element_type=dtype)

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        sums, dvT = carry
        i, j = pair
        s_BxHxTxT, rest = tile(i, j)
        p_BxHxTxT = dropped_BxHxTxT = jnp.exp(s_BxHxTxT - lse_nxBxHxT[i][..., None])
        dp_BxHxTxT = dot("bhik,bhjk->bhij", dout_nxBxHxTxK[i], v_nxBxHxTxK[j])
        if dropout.key is not None:
            factors_BxHxTxT = dropout_factors(dropout.key, dropout.rate, p_BxHxTxT.shape, i, j)
            dropped_BxHxTxT, dp_BxHxTxT = p_BxHxTxT * factors_BxHxTxT, dp_BxHxTxT * factors_BxHxTxT
        dropped_BxHxTxT = dropped_BxHxTxT.astype(dout_nxBxHxTxK.dtype)
        dvT = set_tile(dvT, dvT[j] + dot("bhki,bhij->bhkj", doutT_nxBxHxKxT[i], dropped_BxHxTxT), j)
        slope_BxHxTxT = dp_BxHxTxT - delta_nxBxHxT[i][..., None]
        return (add_gradients(sums, i, j, rest, p_BxHxTxT, slope_BxHxTxT), dvT), None

    zeros = jnp.zeros(doutT_nxBxHxKxT.shape, dtype)
    (sums, dvT_nxBxHxKxT), _ = lax.scan(step, (init, zeros), tile_pairs(v_nxBxHxTxK.shape[0]))
    return sums, transposed(dvT_nxBxHxKxT)


def transposed(x_nxBxHxTxK: Array) -> Array:
    """Returns (n, B, H, K, T).

    XLA's CPU matmul is three times as fast when it contracts the last axis of its left operand. So the backward pass
    transposes its left operands once, before the loop, and sums gradients of keys and values as (n, B, H, K, T).
    """
    return x_nxBxHxTxK.swapaxes(3, 4)
