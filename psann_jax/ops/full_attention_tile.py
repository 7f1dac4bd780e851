"""The arithmetic of attention from every position to all positions in one tile, which the kernels share."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.dropout import keep_by_index, keep_probability
from psann_jax.ops.tiles import MASK_VALUE


class Tile(NamedTuple):
    """What the kernels know of the weights of one head in one row.

    Attributes:
      length: L, the number of positions.
      head_dim: K.
      rate: of dropout.
      words: two random words, uint32; unused if the rate is 0.
      first_index: of the first weight among the weights of all rows and heads, (B, H, L, L), uint32.
    """

    length: int
    head_dim: int
    rate: float
    words: tuple[Array, Array]
    first_index: Array


def weights(tile: Tile, scores_TxT: Array) -> tuple[Array, Array]:
    """Returns softmax(scores / sqrt(K)) over the keys below L, and the factors of dropout, both float32."""
    query, key = (lax.broadcasted_iota(jnp.int32, scores_TxT.shape, axis) for axis in (0, 1))
    scores = jnp.where(key < tile.length, scores_TxT * (1 / math.sqrt(tile.head_dim)), MASK_VALUE)
    unnormalised = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    weights = unnormalised / jnp.sum(unnormalised, axis=1, keepdims=True)
    if not tile.rate:
        return weights, jnp.ones_like(weights)
    index = tile.first_index + (query * tile.length + key).astype(jnp.uint32)
    kept = keep_by_index(index, tile.words, tile.rate)
    return weights, jnp.where(kept, 1 / keep_probability(tile.rate), 0.0).astype(jnp.float32)


def score_gradients(tile: Tile, weights_TxT: Array, dweights_TxT: Array) -> Array:
    """Returns the gradient of the unscaled scores from that of the weights before dropout."""
    mean_Tx1 = jnp.sum(weights_TxT * dweights_TxT, axis=1, keepdims=True)
    return weights_TxT * (dweights_TxT - mean_Tx1) * (1 / math.sqrt(tile.head_dim))
