"""Square tiles of the scores of causal attention.

Among its own tokens, query tile i meets key tiles 0 to i; of a block of earlier tokens, all. With a sliding window,
tiles before it are left out.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.dropout import keep_mask

MASK_VALUE = -1e30  # score of a masked key; finite, so that a row with no visible key in a tile gives no NaN
# Rows and columns per tile: small enough for the caches of a CPU, large enough for a kernel launch elsewhere.
_CPU_TILE, _ACCELERATOR_TILE = 128, 256
_RING_TILE = 512  # of parts of a window on accelerators, where the tiles of a ring are many and each launches kernels


class Dropout(NamedTuple):
    """Dropout of attention weights.

    Attributes:
      key: PRNG key; None disables dropout.
      rate: fraction of the weights to drop, in [0, 1).
    """

    key: Array | None
    rate: float


NO_DROPOUT = Dropout(None, 0.0)


def tiling(length: int) -> tuple[int, int]:
    """Returns the number of tiles along a sequence and the length of each; also of masks of dropout, on every mesh."""
    return _divided(length, _CPU_TILE if kernels.platform() == "cpu" else _ACCELERATOR_TILE)


def split_tiling(length: int) -> tuple[int, int]:
    """Returns the number and the length of the tiles that `split` makes of a sequence, or of a part of a window."""
    if kernels.platform() == "cpu" or kernels.window_parts() == 1:
        return tiling(length)
    return _divided(length, _RING_TILE)


def _divided(length: int, largest: int) -> tuple[int, int]:
    n = math.ceil(length / largest)
    return n, math.ceil(length / n)


def tiles_back(window: int, T: int) -> int:
    """Returns how many tiles of T tokens before its own the queries of a tile see with a sliding window."""
    return math.ceil((window - 1) / T)


def tile_pairs(n: int, back: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices (i, j) of all tiles with j <= i < n, row by row; with `back`, those with i - back <= j."""
    i, j = np.tril_indices(n)
    seen = slice(None) if back is None else i - j <= back
    return i[seen].astype(np.int32), j[seen].astype(np.int32)


def pairs_behind(n: int, T: int, length: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices (i, j) of the tiles with keys of an earlier block, row by row.

    Args:
      n: tiles of a block.
      T: tokens of a tile.
      length: tokens of a block, at most n * T.
      window: if not 0, pairs are left out whose keys the queries do not see even if the block is the one just before.
    """
    i, j = np.indices((n, n)).reshape(2, -1)
    seen = length + (i - j - 1) * T + 1 < window if window else slice(None)
    return i[seen].astype(np.int32), j[seen].astype(np.int32)


class Block(NamedTuple):
    """A block of keys that queries meet, both as tiles.

    Attributes:
      segment_ids: documents of the queries and of the keys, each (n, B, T), or None.
      behind: tokens from the first key to the first query; 0 if they are the same tokens.
      n_keys: keys before the padding; 0 if no query comes after the padding, which causality then hides.
    """

    segment_ids: tuple[Array, Array] | None
    behind: Array | int = 0
    n_keys: int = 0


def split(x_BxLxHxK: Array) -> Array:
    """Splits a sequence into tiles, (B, L, H, K) -> (n, B, H, T, K), and pads the last one with zeros."""
    B, L, H, K = x_BxLxHxK.shape
    n, T = split_tiling(L)
    x_BxLxHxK = jnp.pad(x_BxLxHxK, ((0, 0), (0, n * T - L), (0, 0), (0, 0)))
    return x_BxLxHxK.reshape(B, n, T, H, K).transpose(1, 0, 3, 2, 4)


def join(x_nxBxHxTxK: Array, length: int) -> Array:
    """Inverts `split`."""
    n, B, H, T, K = x_nxBxHxTxK.shape
    return x_nxBxHxTxK.transpose(1, 0, 3, 2, 4).reshape(B, n * T, H, K)[:, :length]


def split_rows(x_BxL: Array | None) -> Array | None:
    """Splits one number per token into tiles, (B, L) -> (n, B, T), and pads the last one with zeros."""
    return None if x_BxL is None else split(x_BxL[:, :, None, None])[:, :, 0, :, 0]


def join_rows(x_nxBxT: Array, length: int) -> Array:
    """Inverts `split_rows`."""
    return join(x_nxBxT[:, :, None, :, None], length)[:, :, 0, 0]


# Updates one tile in place inside a loop; x.at[i].set would compile to a scatter.
set_tile = partial(lax.dynamic_update_index_in_dim, axis=0)


def tile_key(key: Array, i: Array | int, j: Array | int) -> Array:
    """Returns the key of the mask of tile (i, j)."""
    return jax.random.fold_in(jax.random.fold_in(key, i), j)


def dropout_factors(key: Array, rate: float, shape: tuple[int, ...], i: Array | int, j: Array | int) -> Array:
    """Returns the factors of the attention weights in tile (i, j): 0 where dropped, 1 / (1 - rate) elsewhere."""
    mask, keep_prob = keep_mask(tile_key(key, i, j), rate, shape)
    return mask / jnp.float32(keep_prob)


def window_dropout_factors(key: Array, rate: float, B: int, H: int, L: int) -> Array:
    """Returns the factors of all tiles as one array (B, H, L, L), for the reference implementations."""
    n, T = tiling(L)
    index = jnp.arange(n)
    draw = partial(dropout_factors, key, rate, (B, H, T, T))
    factors = jax.vmap(lambda i: jax.vmap(lambda j: draw(i, j))(index))(index)
    return factors.transpose(2, 3, 0, 4, 1, 5).reshape(B, H, n * T, n * T)[:, :, :L, :L]


def within(lag: Array, window: int) -> Array:
    """Returns whether a key that lies `lag` tokens before a query is visible; window 0: whatever the lag."""
    return (lag >= 0) & (lag < window) if window else lag >= 0


def visible(i: Array, j: Array, T: int, block: Block, window: int = 0) -> tuple[Array, Array]:
    """Returns the lag (query index - key index) in tile (i, j), (T, T), and the visible keys, (B or 1, 1, T, T)."""
    lag_TxT = block.behind + (i - j) * T + jnp.arange(T)[:, None] - jnp.arange(T)[None]
    visible_BxHxTxT = within(lag_TxT, window)[None, None]
    if block.n_keys:
        visible_BxHxTxT &= j * T + jnp.arange(T) < block.n_keys
    if block.segment_ids is not None:
        query_ids_nxBxT, key_ids_nxBxT = block.segment_ids
        visible_BxHxTxT &= (query_ids_nxBxT[i][:, :, None] == key_ids_nxBxT[j][:, None, :])[:, None]
    return lag_TxT, visible_BxHxTxT


def own_block(segment_ids_nxBxT: Array | None) -> Block:
    """Returns the block of keys that are of the same tokens as the queries."""
    return Block(None if segment_ids_nxBxT is None else (segment_ids_nxBxT, segment_ids_nxBxT))


def window_visible(L: int, segment_ids_BxL: Array | None, window: int = 0) -> tuple[Array, Array]:
    """Returns `visible` for all L tokens, (L, L) and (B or 1, 1, L, L)."""
    segment_ids = None if segment_ids_BxL is None else jnp.asarray(segment_ids_BxL)[None]
    zero = jnp.zeros((), jnp.int32)
    return visible(zero, zero, L, own_block(segment_ids), window)
