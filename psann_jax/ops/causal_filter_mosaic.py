"""The causal filter of `psann_jax.ops.causal_filter` for many taps, as TPU kernels.

A kernel keeps a tile of positions and its neighbour in vector memory, where XLA writes shifted copies of whole arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

TILE = 256  # positions per tile
MAX_TAPS = 128  # the sums over taps are unrolled, and compile time grows with them; TILE + 1 would be correct, too
_FEATURES = 128  # per tile: the lanes of a register


class _Specs(NamedTuple):
    """Blocks of the arguments; the grid is (features, batch, positions).

    Attributes:
      grid: the grid.
      rows: makes the block of an array (B, L, D), for the tile i + shift of positions or the nearest that there is.
      reach: makes the block of `_reach`, for the tile i + shift.
      taps: the block of the taps.
    """

    grid: tuple[int, int, int]
    rows: Callable[[int], Any]
    reach: Callable[[int], Any]
    taps: Any


def _specs(x_BxLxD: Array, n_taps: int) -> _Specs:
    from jax.experimental import pallas as pl

    B, L, D = x_BxLxD.shape
    n = pl.cdiv(L, TILE)

    def rows(shift: int) -> Any:
        return pl.BlockSpec((None, TILE, _FEATURES), lambda d, b, i: (b, jnp.clip(i + shift, 0, n - 1), d))

    def reach(shift: int) -> Any:
        return pl.BlockSpec((None, TILE, 1), lambda d, b, i: (b, i + shift, 0))

    taps = pl.BlockSpec((n_taps, _FEATURES), lambda d, b, i: (0, d))
    return _Specs((pl.cdiv(D, _FEATURES), B, n), rows, reach, taps)


def _reach(reach_BxL: Array) -> Array:
    """Returns the reach as a column, with -1 in the rest of the last tile and in one more tile, which see nothing."""
    fill = -reach_BxL.shape[1] % TILE + TILE
    return jnp.pad(reach_BxL, ((0, 0), (0, fill)), constant_values=-1)[..., None]


def forward(x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array, *, interpret: bool = False) -> Array:
    """Computes y[t] = sum_k taps[k] * x[t - k] over the k <= reach[t] <= t."""
    from jax.experimental import pallas as pl

    specs = _specs(x_BxLxD, taps_KxD.shape[0])
    return pl.pallas_call(
        _sum_kernel,
        grid=specs.grid,
        in_specs=[specs.rows(-1), specs.rows(0), specs.taps, specs.reach(0)],
        out_specs=specs.rows(0),
        out_shape=jax.ShapeDtypeStruct(x_BxLxD.shape, x_BxLxD.dtype),
        interpret=interpret,
        name="causal_filter",
    )(x_BxLxD, x_BxLxD, taps_KxD, _reach(reach_BxL))


def gradients(
    x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array, dy_BxLxD: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """Computes the gradients of x and of the taps (in float32)."""
    from jax.experimental import pallas as pl

    n_taps, reach = taps_KxD.shape[0], _reach(reach_BxL)
    specs = _specs(x_BxLxD, n_taps)
    dx = pl.pallas_call(
        _input_kernel,
        grid=specs.grid,
        in_specs=[specs.rows(0), specs.rows(1), specs.taps, specs.reach(0), specs.reach(1)],
        out_specs=specs.rows(0),
        out_shape=jax.ShapeDtypeStruct(x_BxLxD.shape, x_BxLxD.dtype),
        interpret=interpret,
        name="causal_filter_input_gradient",
    )(dy_BxLxD, dy_BxLxD, taps_KxD, reach, reach)
    dtaps = pl.pallas_call(
        _taps_kernel,
        grid=specs.grid,
        in_specs=[specs.rows(-1), specs.rows(0), specs.rows(0), specs.reach(0)],
        out_specs=specs.taps,
        out_shape=jax.ShapeDtypeStruct(taps_KxD.shape, jnp.float32),
        interpret=interpret,
        name="causal_filter_taps_gradient",
    )(x_BxLxD, x_BxLxD, dy_BxLxD, reach)
    return dx, dtaps


def _joined(first_ref: Any, second_ref: Any) -> Array:
    """Two neighbouring tiles in float32, (2 * TILE, features)."""
    return jnp.concatenate([first_ref[...].astype(jnp.float32), second_ref[...].astype(jnp.float32)], axis=0)


def _sum_kernel(before_ref: Any, x_ref: Any, taps_ref: Any, reach_ref: Any, y_ref: Any) -> None:
    """Adds up taps[k] * x[t - k] for one tile."""
    x, reach, taps = _joined(before_ref, x_ref), reach_ref[...], taps_ref[...].astype(jnp.float32)
    y = jnp.zeros(y_ref.shape, jnp.float32)
    for k in range(taps.shape[0]):
        y += jnp.where(reach >= k, x[TILE - k : 2 * TILE - k] * taps[k : k + 1], 0.0)
    y_ref[...] = y.astype(y_ref.dtype)


def _input_kernel(
    dy_ref: Any, after_ref: Any, taps_ref: Any, reach_ref: Any, reach_after_ref: Any, dx_ref: Any
) -> None:
    """Adds up taps[k] * dy[t + k] over the positions t + k that see t, for one tile."""
    dy, reach = _joined(dy_ref, after_ref), jnp.concatenate([reach_ref[...], reach_after_ref[...]], axis=0)
    taps = taps_ref[...].astype(jnp.float32)
    dx = jnp.zeros(dx_ref.shape, jnp.float32)
    for k in range(taps.shape[0]):
        dx += jnp.where(reach[k : k + TILE] >= k, dy[k : k + TILE] * taps[k : k + 1], 0.0)
    dx_ref[...] = dx.astype(dx_ref.dtype)


def _taps_kernel(before_ref: Any, x_ref: Any, dy_ref: Any, reach_ref: Any, dtaps_ref: Any) -> None:
    """Adds the sums of dy[t] * x[t - k] over one tile to those of the earlier tiles and rows."""
    from jax.experimental import pallas as pl

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        dtaps_ref[...] = jnp.zeros_like(dtaps_ref)

    x, reach, dy = _joined(before_ref, x_ref), reach_ref[...], dy_ref[...].astype(jnp.float32)
    for k in range(dtaps_ref.shape[0]):
        product = jnp.where(reach >= k, x[TILE - k : 2 * TILE - k] * dy, 0.0)
        dtaps_ref[k : k + 1] += jnp.sum(product, axis=0, keepdims=True)
