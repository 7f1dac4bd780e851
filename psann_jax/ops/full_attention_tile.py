"""The arithmetic of attention from every position to all positions in one tile, which the kernels share."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.dropout import column_word, keep_element, keep_probability, row_word
from psann_jax.ops.tiles import MASK_VALUE


class Tile(NamedTuple):
    """What the kernels know of the weights of one head in one row.

    Attributes:
      length: L, the number of positions.
      head_dim: K.
      rate: of dropout.
      words: two random words, uint32; unused if the rate is 0.
      first_row: index of the first query among the queries of all rows and heads, (B, H, L), uint32.
    """

    length: int
    head_dim: int
    rate: float
    words: tuple[Array, Array]
    first_row: Array


def weights(tile: Tile, scores_TxT: Array) -> tuple[Array, Array]:
    """Returns softmax(scores / sqrt(K)) over the keys below L, and the factors of dropout, both float32."""
    key_1xT = lax.broadcasted_iota(jnp.int32, (1, scores_TxT.shape[1]), 1)
    scores = jnp.where(key_1xT < tile.length, scores_TxT * (1 / math.sqrt(tile.head_dim)), MASK_VALUE)
    unnormalised = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    weights = unnormalised / jnp.sum(unnormalised, axis=1, keepdims=True)
    if not tile.rate:
        return weights, jnp.ones_like(weights)
    row_Tx1 = lax.broadcasted_iota(jnp.uint32, (scores_TxT.shape[0], 1), 0)
    word_Tx1 = row_word(tile.first_row + row_Tx1, tile.words)
    kept = keep_element(word_Tx1, column_word(key_1xT.astype(jnp.uint32)), tile.rate)
    return weights, jnp.where(kept, 1 / keep_probability(tile.rate), 0.0).astype(jnp.float32)


def score_gradients(tile: Tile, weights_TxT: Array, dweights_TxT: Array) -> Array:
    """Returns the gradient of the unscaled scores from that of the weights before dropout."""
    mean_Tx1 = jnp.sum(weights_TxT * dweights_TxT, axis=1, keepdims=True)
    return weights_TxT * (dweights_TxT - mean_Tx1) * (1 / math.sqrt(tile.head_dim))
