"""Causal attention over tiles of scores, in memory linear in length; for every device and every option."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import online_softmax, tiles
from psann_jax.ops.tiles import Dropout


def _tile_scores(
    q_BxHxTxK: Array, k_BxHxTxK: Array, i: Array, j: Array, segment_ids_nxBxT: Array | None, slopes_H: Array | None
) -> Array:
    """Returns the masked scores of tile (i, j), (B, H, T, T)."""
    T, K = q_BxHxTxK.shape[2:]
    wide = jnp.promote_types(q_BxHxTxK.dtype, jnp.float32)
    s = jnp.einsum("bhik,bhjk->bhij", q_BxHxTxK, k_BxHxTxK, preferred_element_type=wide) / math.sqrt(K)
    lag_TxT, visible_BxHxTxT = tiles.visible(i, j, T, segment_ids_nxBxT)
    if slopes_H is not None:
        s -= slopes_H[None, :, None, None] * lag_TxT[None, None]
    return jnp.where(visible_BxHxTxT, s, tiles.MASK_VALUE)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_attention(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    """Computes what `causal_attention` describes; the arguments are its own, the slopes those of ALiBi."""
    return _tiled_forward(dropout_rate, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, slopes_H, dropout_key)[0]


def _tiled_forward(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    q, k, v = tiles.split(q_BxLxHxK), tiles.split(k_BxLxHxK), tiles.split(v_BxLxHxK)
    segment_ids_nxBxT = tiles.split_rows(segment_ids_BxL)

    def scores(i: Array, j: Array) -> Array:
        return _tile_scores(q[i], k[j], i, j, segment_ids_nxBxT, slopes_H)

    wide = jnp.promote_types(q.dtype, jnp.float32)
    out, lse = online_softmax.forward(scores, v, Dropout(dropout_key, dropout_rate), wide)
    out_BxLxHxK = tiles.join(out, q_BxLxHxK.shape[1])
    return out_BxLxHxK, (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse)


def _tiled_backward(dropout_rate: float, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    *inputs, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse = saved
    q, k, v, out, dout = (tiles.split(x) for x in (*inputs, out_BxLxHxK, dout_BxLxHxK))
    qT = online_softmax.transposed(q)
    segment_ids_nxBxT = tiles.split_rows(segment_ids_BxL)
    wide = lse.dtype
    dot = partial(jnp.einsum, preferred_element_type=wide)

    def tile(i: Array, j: Array) -> tuple[Array, None]:
        return _tile_scores(q[i], k[j], i, j, segment_ids_nxBxT, slopes_H), None

    def add_gradients(sums: tuple[Array, Array], i: Array, j: Array, _: None, p: Array, slope: Array) -> Any:
        dq, dkT = sums
        ds = (p * slope).astype(q.dtype)
        dq = tiles.set_tile(dq, dq[i] + dot("bhij,bhjk->bhik", ds, k[j]), i)
        return dq, tiles.set_tile(dkT, dkT[j] + dot("bhki,bhij->bhkj", qT[i], ds), j)

    init = jnp.zeros(q.shape, wide), jnp.zeros(qT.shape, wide)
    dropout = Dropout(dropout_key, dropout_rate)
    (dq, dkT), dv = online_softmax.backward(tile, add_gradients, init, v, dropout, (out, lse), dout)
    scale = 1 / math.sqrt(q.shape[-1])
    grads = (scale * dq, scale * online_softmax.transposed(dkT), dv)
    dq, dk, dv = (tiles.join(g, x.shape[1]).astype(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv, None, None, None


tiled_attention.defvjp(_tiled_forward, _tiled_backward)
