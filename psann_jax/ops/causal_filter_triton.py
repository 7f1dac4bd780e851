"""The causal filter of `psann_jax.ops.causal_filter` for many taps, as GPU kernels.

XLA compiles the sum over taps and its derivatives to about 1.5 kernels per tap, which read the arrays again and again.
Here a kernel's program reads its part once from memory and K times from the caches.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

_TILE_ROWS, _TILE_FEATURES = 64, 64
_SUM_ROWS = 256  # positions that one program adds up for the gradient of the taps


def forward(x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array, *, interpret: bool = False) -> Array:
    """Computes y[t] = sum_k taps[k] * x[t - k] over the k <= reach[t] <= t."""
    return _shifted_sums(x_BxLxD, taps_KxD, reach_BxL, backward=False, interpret=interpret)


def gradients(
    x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array, dy_BxLxD: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """Computes the gradients of x and of the taps (in float32)."""
    dx = _shifted_sums(dy_BxLxD, taps_KxD, reach_BxL, backward=True, interpret=interpret)
    return dx, _taps_gradient(x_BxLxD, taps_KxD.shape[0], reach_BxL, dy_BxLxD, interpret=interpret)


def _shifted_sums(x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array, *, backward: bool, interpret: bool) -> Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    B, L, D = x_BxLxD.shape
    return pl.pallas_call(
        partial(_sum_kernel, backward),
        grid=(pl.cdiv(D, _TILE_FEATURES), pl.cdiv(L, _TILE_ROWS), B),
        out_shape=jax.ShapeDtypeStruct(x_BxLxD.shape, x_BxLxD.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="causal_filter_backward" if backward else "causal_filter",
    )(x_BxLxD, taps_KxD, reach_BxL)


def _sum_kernel(backward: bool, x_ref: Any, taps_ref: Any, reach_ref: Any, y_ref: Any) -> None:
    """Adds up taps[k] * x[t - k], or taps[k] * x[t + k] in the backward pass, for one tile."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    _, L, D = x_ref.shape
    b = pl.program_id(2)
    column = pl.program_id(0) * _TILE_FEATURES + jnp.arange(_TILE_FEATURES)
    row = pl.program_id(1) * _TILE_ROWS + jnp.arange(_TILE_ROWS)
    is_feature = column < D
    reach = plgpu.load(reach_ref.at[b, row], mask=row < L, other=-1)

    def add(k: Array, y: Array) -> Array:
        source = row + k if backward else row - k
        # A position is seen by the one k later if that one's document reaches back to it.
        seen = plgpu.load(reach_ref.at[b, source], mask=source < L, other=-1) >= k if backward else reach >= k
        mask = seen[:, None] & is_feature[None]
        x = plgpu.load(x_ref.at[b, source[:, None], column[None]], mask=mask, other=0.0)
        tap = plgpu.load(taps_ref.at[k, column], mask=is_feature, other=0.0)
        return y + x.astype(jnp.float32) * tap.astype(jnp.float32)[None]

    y = lax.fori_loop(0, taps_ref.shape[0], add, jnp.zeros((_TILE_ROWS, _TILE_FEATURES), jnp.float32))
    inside = (row < L)[:, None] & is_feature[None]
    plgpu.store(y_ref.at[b, row[:, None], column[None]], y.astype(y_ref.dtype), mask=inside)


def _taps_gradient(x_BxLxD: Array, n_taps: int, reach_BxL: Array, dy_BxLxD: Array, *, interpret: bool) -> Array:
    """Computes dtaps[k] = sum over rows and t of dy[t] * x[t - k]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    B, L, D = x_BxLxD.shape
    n = pl.cdiv(L, _SUM_ROWS)
    sums_BxNxKxD = pl.pallas_call(
        _taps_kernel,
        grid=(pl.cdiv(D, _TILE_FEATURES), n, B),
        out_shape=jax.ShapeDtypeStruct((B, n, n_taps, D), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="causal_filter_taps",
    )(x_BxLxD, reach_BxL, dy_BxLxD)
    return jnp.sum(sums_BxNxKxD, axis=(0, 1))


def _taps_kernel(x_ref: Any, reach_ref: Any, dy_ref: Any, sums_ref: Any) -> None:
    """Adds up the gradients of all taps over _SUM_ROWS positions, for one tile of features."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    _, L, D = x_ref.shape
    n, b = pl.program_id(1), pl.program_id(2)
    column = pl.program_id(0) * _TILE_FEATURES + jnp.arange(_TILE_FEATURES)
    is_feature = column < D

    def one_tap(k: Array, _: Array) -> Array:
        def add(i: Array, total: Array) -> Array:
            row = n * _SUM_ROWS + i * _TILE_ROWS + jnp.arange(_TILE_ROWS)
            reach = plgpu.load(reach_ref.at[b, row], mask=row < L, other=-1)
            mask = (reach >= k)[:, None] & is_feature[None]
            x, dy = (
                plgpu.load(ref.at[b, at[:, None], column[None]], mask=mask, other=0.0).astype(jnp.float32)
                for ref, at in ((x_ref, row - k), (dy_ref, row))
            )
            return total + x * dy

        zeros = jnp.zeros((_TILE_ROWS, _TILE_FEATURES), jnp.float32)
        total = lax.fori_loop(0, _SUM_ROWS // _TILE_ROWS, add, zeros)
        plgpu.store(sums_ref.at[b, n, k, column], jnp.sum(total, axis=0), mask=is_feature)
        return _

    lax.fori_loop(0, sums_ref.shape[2], one_tap, jnp.int32(0))
