"""The backward pass of the damped sine as one GPU kernel.

XLA compiles the gradients of the input and of the three parameters to several kernels, which read z and the gradient of
the output once each. This kernel reads both once. The forward pass needs none: XLA compiles it to one kernel already.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# A program of the kernel handles a tile of features, and rows in steps of a tile until it has handled _ROWS.
_TILE_ROWS, _TILE_FEATURES, _ROWS = 16, 128, 256

Terms = Callable[..., tuple[Array, ...]]


def gradients(
    terms: Terms, z: Array, A_F: Array, f_F: Array, d_F: Array, dy: Array, *, interpret: bool = False
) -> tuple[Array, ...]:
    """Returns the gradient of z and, summed over all axes but the last, the other terms.

    Args:
      terms: (z, A, f, d, dy) -> the gradient of z, and three arrays of summands in float32, for one tile.
      z: (..., F).
      A_F: parameters of `terms`, float32, like the next two.
      f_F: see A_F.
      d_F: see A_F.
      dy: the gradient of the output, like z.
      interpret: whether the kernel is interpreted, for tests on CPUs.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    features, rows = z.shape[-1], z.size // z.shape[-1]
    n = max(1, pl.cdiv(rows, _ROWS))
    grid = (pl.cdiv(features, _TILE_FEATURES), n)
    dz, sums_Nx3xF = pl.pallas_call(
        partial(_kernel, terms),
        grid=grid,
        out_shape=[
            jax.ShapeDtypeStruct((rows, features), z.dtype),
            jax.ShapeDtypeStruct((n, 3, features), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="damped_sine_backward",
    )(z.reshape(rows, features), A_F, f_F, d_F, dy.reshape(rows, features))
    return dz.reshape(z.shape), *jnp.sum(sums_Nx3xF, axis=0)


def _kernel(terms: Terms, *refs: Any) -> None:
    """Computes one tile of features and _ROWS rows."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    z_ref, A_ref, f_ref, d_ref, dy_ref, dz_ref, sums_ref = refs
    rows, features = z_ref.shape
    part = pl.program_id(1)
    column = pl.program_id(0) * _TILE_FEATURES + jnp.arange(_TILE_FEATURES)
    inside = column < features
    A, f, d = (plgpu.load(ref.at[column], mask=inside, other=0.0)[None] for ref in (A_ref, f_ref, d_ref))

    def step(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        row = part * _ROWS + i * _TILE_ROWS + jnp.arange(_TILE_ROWS)
        tile = (row[:, None], column[None])
        mask = (row < rows)[:, None] & inside[None]
        # The gradient of masked elements is loaded as 0, so they add nothing to the sums.
        z, dy = (plgpu.load(ref.at[tile], mask=mask, other=0.0) for ref in (z_ref, dy_ref))
        dz, *summands = terms(z, A, f, d, dy)
        plgpu.store(dz_ref.at[tile], dz, mask=mask)
        return tuple(total + term for total, term in zip(sums, summands, strict=True))

    zeros = jnp.zeros((_TILE_ROWS, _TILE_FEATURES), jnp.float32)
    sums = lax.fori_loop(0, _ROWS // _TILE_ROWS, step, (zeros, zeros, zeros))
    for i, total in enumerate(sums):
        plgpu.store(sums_ref.at[part, i, column], jnp.sum(total, axis=0), mask=inside)
