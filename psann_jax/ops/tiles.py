"""Square tiles on and below the diagonal of causal attention: tile i of the queries meets tiles 0 .. i of the keys."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from psann_jax.ops.dropout import kept

MASKED = -1e30  # a score that is finite, so that a row without a visible key in a tile gives no NaN
# Rows and columns of a tile: in the caches of a CPU, or enough work for a kernel launch elsewhere.
_CPU_TILE, _ACCELERATOR_TILE = 128, 256


def tiles(length: int) -> tuple[int, int]:
    """How many tiles a sequence is cut into, and how long they are."""
    n = math.ceil(length / (_CPU_TILE if jax.default_backend() == "cpu" else _ACCELERATOR_TILE))
    return n, math.ceil(length / n)


def pairs(n: int) -> Any:
    """The tile of queries and the tile of keys at every step of a loop over n rows of tiles."""
    i, j = np.tril_indices(n)
    return i.astype(np.int32), j.astype(np.int32)


def split(x_BxLxHxK: Array) -> Array:
    """(B, L, H, K) -> (n, B, H, T, K), padded with zeros."""
    B, L, H, K = x_BxLxHxK.shape
    n, T = tiles(L)
    x_BxLxHxK = jnp.pad(x_BxLxHxK, ((0, 0), (0, n * T - L), (0, 0), (0, 0)))
    return x_BxLxHxK.reshape(B, n, T, H, K).transpose(1, 0, 3, 2, 4)


def join(x_nxBxHxTxK: Array, length: int) -> Array:
    """Undoes `split`."""
    n, B, H, T, K = x_nxBxHxTxK.shape
    return x_nxBxHxTxK.transpose(1, 0, 3, 2, 4).reshape(B, n * T, H, K)[:, :length]


def split_rows(x_BxL: Array | None) -> Array | None:
    """(B, L) -> (n, B, T), padded with zeros."""
    return None if x_BxL is None else split(x_BxL[:, :, None, None])[:, :, 0, :, 0]


def join_rows(x_nxBxT: Array, length: int) -> Array:
    """Undoes `split_rows`."""
    return join(x_nxBxT[:, :, None, :, None], length)[:, :, 0, 0]


# In place inside a loop; x.at[i].set would be a scatter.
put = partial(lax.dynamic_update_index_in_dim, axis=0)


def keep(key: Array, rate: float, shape: tuple[int, ...], i: Array, j: Array) -> Array:
    """Factors of the attention weights of one tile: 0 for dropped ones, 1 / (1 - rate) for the others."""
    key = jax.random.fold_in(jax.random.fold_in(key, i), j)
    stays, share = kept(key, rate, shape)
    return stays / jnp.float32(share)


def keep_whole(key: Array, rate: float, B: int, H: int, L: int) -> Array:
    """The factors of all tiles, (B, H, L, L), for a form that has no tiles."""
    n, T = tiles(L)
    tile = jnp.arange(n)
    draw = partial(keep, key, rate, (B, H, T, T))
    factors = jax.vmap(lambda i: jax.vmap(lambda j: draw(i, j))(tile))(tile)
    return factors.transpose(2, 3, 0, 4, 1, 5).reshape(B, H, n * T, n * T)[:, :, :L, :L]


def visible(i: Array, j: Array, T: int, segments_nxBxT: Array | None) -> tuple[Array, Array]:
    """How far back each key of tile (i, j) lies, (T, T), and whether its query sees it, (B or 1, 1, T, T)."""
    back_TxT = (i - j) * T + jnp.arange(T)[:, None] - jnp.arange(T)[None]
    visible_BxHxTxT = (back_TxT >= 0)[None, None]
    if segments_nxBxT is not None:
        visible_BxHxTxT &= (segments_nxBxT[i][:, :, None] == segments_nxBxT[j][:, None, :])[:, None]
    return back_TxT, visible_BxHxTxT


def visible_whole(L: int, segment_ids_BxL: Array | None) -> tuple[Array, Array]:
    """`visible` of a whole window, (L, L) and (B or 1, 1, L, L)."""
    segment_ids = None if segment_ids_BxL is None else jnp.asarray(segment_ids_BxL)[None]
    zero = jnp.zeros((), jnp.int32)
    return visible(zero, zero, L, segment_ids)
