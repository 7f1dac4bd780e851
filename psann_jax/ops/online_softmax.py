"""Causal softmax attention over tiles of scores, in memory linear in length.

Every attention that can compute the masked scores of one tile and differentiate them gets its forward and backward
pass here. B batch, H heads of keys and values, n tiles of T tokens, K features per head. A tile has M queries per head:
T, or a multiple if several heads of queries share one of keys and values.

Source: Dao, "FlashAttention-2", 2023.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from psann_jax.ops.tiles import MASK_VALUE, set_tile

Tile = TypeVar("Tile")
Sums = TypeVar("Sums")


class Options(NamedTuple):
    """What is computed of which pairs of tiles.

    Attributes:
      pairs: indices (i, j) of the query and key tiles that meet, row by row.
      factors: takes (shape, i, j) and returns the factors of the softmax weights of a tile for dropout; None: none.
      group: M / T.
    """

    pairs: tuple[np.ndarray, np.ndarray]
    factors: Callable[[tuple[int, ...], Array, Array], Array] | None = None
    group: int = 1


def forward(
    scores: Callable[[Array, Array], Array], v_nxBxHxTxK: Array, options: Options, dtype: Any, out_dtype: Any = None
) -> tuple[Array, Array]:
    """Computes softmax(scores) @ v with a running maximum, sum and accumulator per query.

    Args:
      scores: returns the scores of query tile i and key tile j, (B, H, M, T), with `MASK_VALUE` where masked.
      v_nxBxHxTxK: values.
      options: see `Options`.
      dtype: type of scores, softmax and accumulator.
      out_dtype: type of the output; None: that of the values.

    Returns:
      The output, (n, B, H, M, K), and the logsumexp of the scores, (n, B, H, M). For a query that sees no key, the
      logsumexp is about `MASK_VALUE`, and the output arbitrary but finite.
    """
    n, B, H, T, K = v_nxBxHxTxK.shape
    M = options.group * T

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        max_BxHxM, sum_BxHxM, acc_BxHxMxK, out, lse = carry
        i, j, first = pair
        s_BxHxMxT = scores(i, j)
        previous_max_BxHxM = jnp.where(first, MASK_VALUE, max_BxHxM)
        max_BxHxM = jnp.maximum(previous_max_BxHxM, s_BxHxMxT.max(-1))
        p_BxHxMxT = jnp.exp(s_BxHxMxT - max_BxHxM[..., None])
        rescale_BxHxM = jnp.where(first, 0, jnp.exp(previous_max_BxHxM - max_BxHxM))
        sum_BxHxM = sum_BxHxM * rescale_BxHxM + p_BxHxMxT.sum(-1)
        if options.factors is not None:
            p_BxHxMxT *= options.factors(p_BxHxMxT.shape, i, j)
        p_BxHxMxT = p_BxHxMxT.astype(v_nxBxHxTxK.dtype)
        pv_BxHxMxK = jnp.einsum("bhij,bhjk->bhik", p_BxHxMxT, v_nxBxHxTxK[j], preferred_element_type=dtype)
        acc_BxHxMxK = acc_BxHxMxK * rescale_BxHxM[..., None] + pv_BxHxMxK
        # Each key tile overwrites the result of the one before it; the last one is final.
        out = set_tile(out, (acc_BxHxMxK / sum_BxHxM[..., None]).astype(out.dtype), i)
        lse = set_tile(lse, max_BxHxM + jnp.log(sum_BxHxM), i)
        return (max_BxHxM, sum_BxHxM, acc_BxHxMxK, out, lse), None

    row = jnp.zeros((B, H, M), dtype)
    out = jnp.zeros((n, B, H, M, K), out_dtype or v_nxBxHxTxK.dtype)
    init = (row, row, jnp.zeros((B, H, M, K), dtype), out, jnp.full((n, B, H, M), MASK_VALUE, dtype))
    i, j = options.pairs
    first = np.diff(i, prepend=-1) != 0  # of the tiles of a row
    (*_, out_nxBxHxMxK, lse_nxBxHxM), _ = lax.scan(step, init, (i, j, first))
    return out_nxBxHxMxK, lse_nxBxHxM


def backward(
    tile: Callable[[Array, Array], tuple[Array, Tile]],
    add_gradients: Callable[[Sums, Array, Array, Tile, Array, Array], Sums],
    init: Sums,
    v_nxBxHxTxK: Array,
    options: Options,
    saved: tuple[Array, Array],
    dout_nxBxHxMxK: Array,
) -> tuple[Sums, Array]:
    """Differentiates `forward`, with the scores recomputed tile by tile.

    Args:
      tile: returns the scores of tile (i, j), equal to those of the forward pass, and anything that `add_gradients`
        needs besides.
      add_gradients: takes (sums, i, j, tile, p, slope) and returns the sums with the gradients from tile (i, j) added.
        p is the softmax and p * slope the gradient of the scores, both (B, H, M, T).
      init: initial sums, a pytree.
      v_nxBxHxTxK: values.
      options: as in the forward pass.
      saved: output and logsumexp of the forward pass.
      dout_nxBxHxMxK: gradient of the output.

    Returns:
      The sums over all tiles, and the gradient of the values, (n, B, H, T, K) in the type of the logsumexp.
    """
    out_nxBxHxMxK, lse_nxBxHxM = saved
    dtype = lse_nxBxHxM.dtype
    delta_nxBxHxM = (dout_nxBxHxMxK.astype(dtype) * out_nxBxHxMxK).sum(-1)
    doutT_nxBxHxKxM = transposed(dout_nxBxHxMxK)
    dot = partial(jnp.einsum, preferred_element_type=dtype)

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        sums, dvT = carry
        i, j = pair
        s_BxHxMxT, rest = tile(i, j)
        p_BxHxMxT = dropped_BxHxMxT = jnp.exp(s_BxHxMxT - lse_nxBxHxM[i][..., None])
        dp_BxHxMxT = dot("bhik,bhjk->bhij", dout_nxBxHxMxK[i], v_nxBxHxTxK[j])
        if options.factors is not None:
            factors_BxHxMxT = options.factors(p_BxHxMxT.shape, i, j)
            dropped_BxHxMxT, dp_BxHxMxT = p_BxHxMxT * factors_BxHxMxT, dp_BxHxMxT * factors_BxHxMxT
        dropped_BxHxMxT = dropped_BxHxMxT.astype(dout_nxBxHxMxK.dtype)
        dvT = set_tile(dvT, dvT[j] + dot("bhki,bhij->bhkj", doutT_nxBxHxKxM[i], dropped_BxHxMxT), j)
        slope_BxHxMxT = dp_BxHxMxT - delta_nxBxHxM[i][..., None]
        return (add_gradients(sums, i, j, rest, p_BxHxMxT, slope_BxHxMxT), dvT), None

    n, B, H, T, K = v_nxBxHxTxK.shape
    zeros = jnp.zeros((n, B, H, K, T), dtype)
    (sums, dvT_nxBxHxKxT), _ = lax.scan(step, (init, zeros), options.pairs)
    return sums, transposed(dvT_nxBxHxKxT)


def transposed(x_nxBxHxTxK: Array) -> Array:
    """Returns (n, B, H, K, T).

    XLA's CPU matmul is three times as fast when it contracts the last axis of its left operand. So the backward pass
    transposes its left operands once, before the loop, and sums gradients of keys and values as (n, B, H, K, T).
    """
    return x_nxBxHxTxK.swapaxes(3, 4)
