"""Gravity attention of windows that are divided over devices, by tiles of scores on a ring."""

from functools import partial
from typing import Any

import jax
from jax import Array

from psann_jax.ops import online_softmax, tiles
from psann_jax.ops.attention_dropout import MaskWords
from psann_jax.ops.gravity_attention import (
    GravityTiles,
    Tokens,
    in_wide_types,
    input_gradients,
    split_self_scores,
    tokens_of,
)
from psann_jax.ops.gravity_scores import GravityForm, GravityInputs
from psann_jax.ops.ring import Ring, Visit

KeysAndValues = tuple[Tokens, Array]
Sums = dict[str, Array]


def ring_gravity(form: GravityForm, inputs: GravityInputs, words: MaskWords | None) -> Array:
    """Computes what `gravity_attention` describes, for a device's part of the rows, heads and positions.

    Args:
      form: options of the score.
      inputs: the device's part of the arrays, without a dropout key.
      words: of the masks of dropout, for the device's rows and heads; None without dropout.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    return _ring(form, in_wide_types(form, inputs), words)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(form: GravityForm, x: GravityInputs, words: MaskWords | None) -> Array:
    return _forward(form, x, words)[0]


def _block(ring: Ring, queries: Tokens, keys: Tokens, visit: Visit) -> tiles.Block:
    if queries.segment_ids_nxBxT is None or keys.segment_ids_nxBxT is None:
        return ring.block(None, visit)
    return ring.block((queries.segment_ids_nxBxT, keys.segment_ids_nxBxT), visit)


def _forward(form: GravityForm, x: GravityInputs, words: MaskWords | None) -> tuple[Array, tuple[Any, ...]]:
    ring = Ring(x.v_BxLxHxK.shape[1], dropout_rate=form.dropout_rate)
    queries, self_score, wide = tokens_of(x), split_self_scores(form, x), x.a_BxLxHxC.dtype
    scores = GravityTiles(form, x.params, queries, self_score)

    def attend(keys: KeysAndValues, visit: Visit) -> tuple[Array, Array]:
        tokens, v = keys
        at = scores.tile(tokens, _block(ring, queries, tokens, visit))
        return online_softmax.forward(lambda i, j: at(i, j).s, v, ring.options(visit, words), wide, wide)

    out, lse = ring.forward(attend, (queries, tiles.split(x.v_BxLxHxK)))
    out_BxLxHxK = tiles.join(out, x.v_BxLxHxK.shape[1]).astype(x.v_BxLxHxK.dtype)
    return out_BxLxHxK, (x, words, self_score, out_BxLxHxK, lse)


def _backward(form: GravityForm, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Any, None]:
    x, words, self_score, out_BxLxHxK, lse = saved
    ring, queries = Ring(x.v_BxLxHxK.shape[1], dropout_rate=form.dropout_rate), tokens_of(x)
    v, out, dout = (tiles.split(y) for y in (x.v_BxLxHxK, out_BxLxHxK, dout_BxLxHxK))
    scores = GravityTiles(form, x.params, queries, self_score)

    def differentiate(keys: KeysAndValues, visit: Visit) -> tuple[Sums, Sums]:
        block = _block(ring, queries, keys[0], visit)
        return scores.gradients(keys, block, ring.options(visit, words), (out, lse), dout)

    return input_gradients(x, *ring.backward(differentiate, (queries, v))), None


_ring.defvjp(_forward, _backward)
