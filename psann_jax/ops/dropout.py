"""Dropout with masks that are hashed from element indices.

Random bits of `jax.random` are stored in memory and cost more than the rest of dropout. A hash is recomputed where it
is used, in the forward and in the backward pass, so no mask is ever stored. On a GPU, the hash is most of the work of
dropout. So each row along the last axis has a random word, and so has each column; an element hashes the two once.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

_LEVELS = 2**32


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a fraction `rate` of x and scales the rest by 1 / (1 - rate); the identity without a key."""
    return x if key is None or rate == 0.0 else _dropout(x, rate, key)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(1,))
def _dropout(x: Array, rate: float, key: Array) -> Array:
    mask, keep_prob = keep_mask(key, rate, x.shape)
    return jnp.where(mask, x / keep_prob, jnp.zeros((), x.dtype))


def keep_mask(key: Array, rate: float, shape: tuple[int, ...]) -> tuple[Array, float]:
    """Draws the elements that dropout keeps.

    Args:
      key: PRNG key of any implementation.
      rate: fraction to drop, in [0, 1).
      shape: shape of the mask.

    Returns:
      The mask, bool, True where an element is kept; and the exact probability of that, to divide kept elements by.
    """
    row = jnp.zeros(shape[:-1], jnp.uint32)
    for axis in range(len(shape) - 1):
        row = row * jnp.uint32(shape[axis]) + lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    column = lax.iota(jnp.uint32, shape[-1]) if shape else jnp.uint32(0)
    # Without the barrier, the compiler would compute the words again for every element.
    rows, columns = lax.optimization_barrier((row_word(row, random_words(key)), column_word(column)))
    return keep_element(rows[..., None] if shape else rows, columns, rate), keep_probability(rate)


def random_words(key: Array) -> tuple[Array, Array]:
    """Draws the two uint32 words that determine a mask."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return first, second


def row_word(row: Array, words: tuple[Array, Array]) -> Array:
    """Returns the random word of rows, uint32; elementwise, so also inside a kernel.

    Args:
      row: index of each row in the array without its last axis, flattened, uint32.
      words: two random uint32 words, broadcastable to the rows.
    """
    # With one round, the words of one key could be a permutation of another key's.
    return _hash(_hash(row ^ words[0]) + words[1])


def column_word(column: Array) -> Array:
    """Returns the word of columns, uint32, from their indices, uint32.

    With the index in its place, two rows with neighbouring words would have the same mask, shifted.
    """
    return _hash(column)


def keep_element(row: Array, column: Array, rate: float) -> Array:
    """Returns whether dropout keeps elements; elementwise, so also inside a kernel.

    Args:
      row: `row_word` of each element, broadcastable to the elements.
      column: its `column_word`, likewise.
      rate: fraction to drop, in [0, 1).
    """
    return _hash(row ^ column) >= jnp.uint32(_n_dropped(rate))


def keep_probability(rate: float) -> float:
    """Returns the exact probability that an element is kept."""
    return 1 - _n_dropped(rate) / _LEVELS


def _n_dropped(rate: float) -> int:
    return min(round(rate * _LEVELS), _LEVELS - 1)


def row_words(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws two words of `row_word` for every element of an array, (*shape, 2) uint32.

    Arrays with words of their own can be dropped by devices that each hold some of them, whichever they hold.
    """
    index = lax.iota(jnp.uint32, math.prod(shape))
    return _hash(index[:, None] ^ jax.random.bits(key, (2,), jnp.uint32)).reshape(*shape, 2)


def _hash(x: Array) -> Array:
    """Hashes 32-bit words bijectively; flipping an input bit flips each output bit with a probability near 1/2.

    Source: lowbias32, from Chris Wellons' search for integer hash functions (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
