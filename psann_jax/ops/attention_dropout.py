"""Dropout of attention weights inside a kernel, with the masks of `psann_jax.ops.tiles.dropout_factors`.

Every tile of a window has a mask, hashed from two random words of its own. The words are drawn before the arrays are
divided over devices, so each device drops the weights that one device alone would drop.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import tiles
from psann_jax.ops.dropout import column_word, keep_element, keep_probability, random_words, row_word


class MaskForm(NamedTuple):
    """Static facts about the masks of a window.

    Attributes:
      rate: fraction of the weights to drop.
      n: tiles along the window.
      span: tokens of one of them; the kernel's own tiles have another length.
      aligned: whether the kernel's tiles begin at multiples of their length.
    """

    rate: float
    n: int
    span: int
    aligned: bool = True


class MaskWords(NamedTuple):
    """What determines the masks of a window.

    Attributes:
      first_BxH: index of the first query of each row and head among the queries of a tile, uint32.
      words_N: two random words of every tile (i, j), row by row, uint32; N = 2 n^2.
    """

    first_BxH: Array
    words_N: Array


def mask_form(rate: float, length: int) -> MaskForm:
    """Returns the form of the masks of a window of `length` tokens."""
    return MaskForm(rate, *tiles.tiling(length))


def mask_words(key: Array, B: int, H: int, length: int) -> MaskWords:
    """Draws the words of the masks of all B rows and H heads."""
    n, span = tiles.tiling(length)
    index = jnp.arange(n)
    keys_nxn = jax.vmap(lambda i: jax.vmap(lambda j: tiles.tile_key(key, i, j))(index))(index)
    words_nxnx2 = jnp.stack(jax.vmap(jax.vmap(random_words))(keys_nxn), axis=-1)
    return MaskWords(lax.iota(jnp.uint32, B * H).reshape(B, H) * jnp.uint32(span), words_nxnx2.reshape(-1))


def words_if_dropped(dropout: tiles.Dropout, shape: tuple[int, ...]) -> MaskWords | None:
    """Returns the words of the masks for queries of a shape (B, L, H, K); None if no weights are dropped."""
    B, L, H, _ = shape
    return None if dropout.key is None or not dropout.rate else mask_words(dropout.key, B, H, L)


def mask_factors(form: MaskForm, words: Any, T: int, query: Any, key: Any) -> Array:
    """Returns the factors of a tile of weights of one row and head: 0 where dropped, 1 / (1 - rate) elsewhere.

    Args:
      form: of the masks.
      words: the row's and head's element of `MaskWords.first_BxH`, or an array (..., 1, 1) of such elements; and
        `MaskWords.words_N`, or a reference to it.
      T: tokens of the tile, which can touch several tiles of the masks.
      query: position of its first query, int32.
      key: position of its first key.

    Returns:
      (..., T, T) float32; arbitrary beyond the end of the window.
    """
    first, words_N = words
    query_Tx1, key_1xT = query + jnp.arange(T)[:, None], key + jnp.arange(T)[None]
    # Where no border of the masks crosses the tile, all its weights share two words.
    crossed = form.n > 1 and (form.span % T != 0 or not form.aligned)
    i, j = (jnp.minimum(x // form.span, form.n - 1) for x in ((query_Tx1, key_1xT) if crossed else (query, key)))
    place = 2 * (i * form.n + j)
    row, column = first + (query_Tx1 - i * form.span).astype(jnp.uint32), (key_1xT - j * form.span).astype(jnp.uint32)
    row_word_Tx1 = row_word(row, (words_N[place], words_N[place + 1]))
    kept_TxT = keep_element(row_word_Tx1, column_word(column), form.rate)
    return jnp.where(kept_TxT, jnp.float32(1 / keep_probability(form.rate)), 0)
