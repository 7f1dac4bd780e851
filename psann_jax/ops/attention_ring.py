"""Causal attention of windows that are divided over devices, by tiles of scores on a ring."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import online_softmax, tiles
from psann_jax.ops.attention_dropout import MaskWords
from psann_jax.ops.attention_reference import Static
from psann_jax.ops.attention_tiled import Scores, join_queries, split_queries
from psann_jax.ops.online_softmax import Options
from psann_jax.ops.ring import Ring, Visit

KeysAndValues = tuple[Array, Array, Array | None]  # keys, values and documents, as tiles


class _Queries(NamedTuple):
    """A device's queries as tiles, and what applies to them with all keys; see `ring_attention`."""

    ring: Ring
    q_nxBxGxMxK: Array
    segment_ids_nxBxT: Array | None
    slopes_H: Array | None
    words: MaskWords | None

    def scores(self, block: KeysAndValues, visit: Visit) -> Scores:
        k, _, key_ids = block
        ids = None if self.segment_ids_nxBxT is None or key_ids is None else (self.segment_ids_nxBxT, key_ids)
        return Scores(self.q_nxBxGxMxK, k, self.ring.block(ids, visit), self.slopes_H, self.ring.window)

    def options(self, block: KeysAndValues, visit: Visit) -> Options:
        group = self.q_nxBxGxMxK.shape[3] // block[0].shape[3]
        return self.ring.options(visit, self.words, group)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    words: MaskWords | None,
) -> Array:
    """Computes what `causal_attention` describes, for a device's part of the rows, heads and positions.

    Args:
      static: rate of dropout, and the sliding window.
      q_BxLxHxK: queries.
      k_BxLxGxK: keys.
      v_BxLxGxK: values.
      segment_ids_BxL: document of each token; None: one document per row.
      slopes_H: of ALiBi, or None.
      words: of the masks of dropout, for the device's rows and heads; None without dropout.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    return _forward(static, q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, slopes_H, words)[0]


def _forward(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    words: MaskWords | None,
) -> tuple[Array, tuple[Any, ...]]:
    inputs = (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, segment_ids_BxL, slopes_H, words)
    queries, own = _prepared(static, *inputs)
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)

    def attend(block: KeysAndValues, visit: Visit) -> tuple[Array, Array]:
        scores = queries.scores(block, visit)
        return online_softmax.forward(scores.tile, block[1], queries.options(block, visit), wide, wide)

    out, lse = queries.ring.forward(attend, own)
    out_BxLxHxK = join_queries(out, q_BxLxHxK.shape).astype(v_BxLxGxK.dtype)
    return out_BxLxHxK, (inputs, out_BxLxHxK, lse)


def _backward(static: Static, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    inputs, out_BxLxHxK, lse = saved
    queries, own = _prepared(static, *inputs)
    q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, *_ = inputs
    L, G = k_BxLxGxK.shape[1:3]
    out, dout = (split_queries(x, G) for x in (out_BxLxHxK, dout_BxLxHxK))

    def differentiate(block: KeysAndValues, visit: Visit) -> tuple[Array, tuple[Array, Array]]:
        scores = queries.scores(block, visit)
        dq, dk, dv = scores.gradients(block[1], queries.options(block, visit), (out, lse), dout)
        return dq, (dk, dv)

    dq, dkv = queries.ring.backward(differentiate, own)
    dq_BxLxHxK = join_queries(dq, q_BxLxHxK.shape).astype(q_BxLxHxK.dtype)
    dk_BxLxGxK, dv_BxLxGxK = (
        tiles.join(d, L).astype(x.dtype) for d, x in zip(dkv, (k_BxLxGxK, v_BxLxGxK), strict=True)
    )
    return dq_BxLxHxK, dk_BxLxGxK, dv_BxLxGxK, None, None, None


ring_attention.defvjp(_forward, _backward)


def _prepared(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    words: MaskWords | None,
) -> tuple[_Queries, KeysAndValues]:
    """Returns the arguments of `ring_attention` as tiles: the device's queries, and its own block."""
    ring = Ring(q_BxLxHxK.shape[1], static.window, static.dropout_rate)
    ids = tiles.split_rows(segment_ids_BxL)
    queries = _Queries(ring, split_queries(q_BxLxHxK, k_BxLxGxK.shape[2]), ids, slopes_H, words)
    return queries, (tiles.split(k_BxLxGxK), tiles.split(v_BxLxGxK), ids)
