"""Causal attention over tiles of scores, in memory linear in length; for every device and every option."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import online_softmax, tiles
from psann_jax.ops.attention_reference import Static


class Scores(NamedTuple):
    """Queries, keys and options of the scores; heads of queries that share one of keys lie one after another.

    Attributes:
      q_nxBxGxMxK: queries, M = R * T for R heads of queries per head of keys.
      k_nxBxGxTxK: keys.
      block: where the keys lie, and the documents of queries and keys.
      slopes_H: of ALiBi, or None.
      window: see `Static`.
    """

    q_nxBxGxMxK: Array
    k_nxBxGxTxK: Array
    block: tiles.Block
    slopes_H: Array | None
    window: int

    def tile(self, i: Array, j: Array) -> Array:
        """Returns the masked scores of tile (i, j), (B, G, M, T)."""
        q_BxGxMxK, k_BxGxTxK = self.q_nxBxGxMxK[i], self.k_nxBxGxTxK[j]
        B, G, M, K = q_BxGxMxK.shape
        T = k_BxGxTxK.shape[2]
        wide = jnp.promote_types(q_BxGxMxK.dtype, jnp.float32)
        s = jnp.einsum("bhik,bhjk->bhij", q_BxGxMxK, k_BxGxTxK, preferred_element_type=wide) / math.sqrt(K)
        s = s.reshape(B, -1, T, T)
        lag_TxT, visible_BxHxTxT = tiles.visible(i, j, T, self.block, self.window)
        if self.slopes_H is not None:
            s -= self.slopes_H[None, :, None, None] * lag_TxT[None, None]
        return jnp.where(visible_BxHxTxT, s, tiles.MASK_VALUE).reshape(B, G, M, T)

    def gradients(
        self, v_nxBxGxTxK: Array, options: online_softmax.Options, saved: tuple[Array, Array], dout_nxBxGxMxK: Array
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients of queries, keys and values, in the shapes of all three and the type of the logsumexp.

        Args:
          v_nxBxGxTxK: values.
          options: as in the forward pass.
          saved: output and logsumexp of the forward pass.
          dout_nxBxGxMxK: gradient of the output.
        """
        q, k, wide = self.q_nxBxGxMxK, self.k_nxBxGxTxK, saved[1].dtype
        qT = online_softmax.transposed(q)
        dot = partial(jnp.einsum, preferred_element_type=wide)

        def tile(i: Array, j: Array) -> tuple[Array, None]:
            return self.tile(i, j), None

        def add_gradients(sums: tuple[Array, Array], i: Array, j: Array, _: None, p: Array, slope: Array) -> Any:
            dq, dkT = sums
            ds = (p * slope).astype(q.dtype)
            dq = tiles.set_tile(dq, dq[i] + dot("bhij,bhjk->bhik", ds, k[j]), i)
            return dq, tiles.set_tile(dkT, dkT[j] + dot("bhki,bhij->bhkj", qT[i], ds), j)

        init = jnp.zeros(q.shape, wide), jnp.zeros(k.swapaxes(3, 4).shape, wide)
        (dq, dkT), dv = online_softmax.backward(tile, add_gradients, init, v_nxBxGxTxK, options, saved, dout_nxBxGxMxK)
        scale = 1 / math.sqrt(q.shape[-1])
        return scale * dq, scale * online_softmax.transposed(dkT), dv


def split_queries(x_BxLxHxK: Array, n_groups: int) -> Array:
    """Splits queries into tiles, (n, B, G, M, K)."""
    x_nxBxHxTxK = tiles.split(x_BxLxHxK)
    n, B, _, _, K = x_nxBxHxTxK.shape
    return x_nxBxHxTxK.reshape(n, B, n_groups, -1, K)


def join_queries(x_nxBxGxMxK: Array, shape: tuple[int, ...]) -> Array:
    """Inverts `split_queries`, for queries of shape (B, L, H, K)."""
    _, L, H, K = shape
    n, B = x_nxBxGxMxK.shape[:2]
    return tiles.join(x_nxBxGxMxK.reshape(n, B, H, -1, K), L)


def _options(static: Static, dropout_key: Array | None, q_nxBxGxMxK: Array, T: int) -> online_softmax.Options:
    n, M = q_nxBxGxMxK.shape[0], q_nxBxGxMxK.shape[3]
    back = tiles.tiles_back(static.window, T) if static.window else None
    factors = None if dropout_key is None else partial(tiles.dropout_factors, dropout_key, static.dropout_rate)
    return online_softmax.Options(tiles.tile_pairs(n, back), factors, M // T)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_attention(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    """Computes what `causal_attention` describes; the arguments are its own, the slopes those of ALiBi."""
    return _tiled_forward(static, q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, slopes_H, dropout_key)[0]


def _tiled_forward(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    q, k, v = split_queries(q_BxLxHxK, k_BxLxGxK.shape[2]), tiles.split(k_BxLxGxK), tiles.split(v_BxLxGxK)
    scores = Scores(q, k, tiles.own_block(tiles.split_rows(segment_ids_BxL)), slopes_H, static.window)
    options = _options(static, dropout_key, q, k.shape[3])
    out, lse = online_softmax.forward(scores.tile, v, options, jnp.promote_types(q.dtype, jnp.float32))
    out_BxLxHxK = join_queries(out, q_BxLxHxK.shape)
    return out_BxLxHxK, (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse)


def _tiled_backward(static: Static, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse = saved
    L, G = k_BxLxGxK.shape[1:3]
    q, out, dout = (split_queries(x, G) for x in (q_BxLxHxK, out_BxLxHxK, dout_BxLxHxK))
    k, v = tiles.split(k_BxLxGxK), tiles.split(v_BxLxGxK)
    scores = Scores(q, k, tiles.own_block(tiles.split_rows(segment_ids_BxL)), slopes_H, static.window)
    options = _options(static, dropout_key, q, k.shape[3])
    dq, dk, dv = scores.gradients(v, options, (out, lse), dout)
    dq_BxLxHxK = join_queries(dq, q_BxLxHxK.shape).astype(q.dtype)
    dk_BxLxGxK = tiles.join(dk, L).astype(k.dtype)
    return dq_BxLxHxK, dk_BxLxGxK, tiles.join(dv, L).astype(v.dtype), None, None, None


tiled_attention.defvjp(_tiled_forward, _tiled_backward)
