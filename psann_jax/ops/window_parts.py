"""Reshaping arrays whose windows are divided over devices, without moving anything between devices.

Rows and positions of such an array are both divided, so that they cannot become one axis. The parts of the windows are
therefore moved before the rows.
"""

import jax.numpy as jnp
from jax import Array


def parts_as_rows(x: Array, parts: int) -> Array:
    """Returns x (B, L, ...) as (parts * B, L / parts, ...), the first part of every row first."""
    if parts == 1:
        return x
    B, L, *rest = x.shape
    return jnp.moveaxis(x.reshape(B, parts, L // parts, *rest), 1, 0).reshape(parts * B, L // parts, *rest)


def rows_as_parts(x: Array, parts: int) -> Array:
    """Inverts `parts_as_rows`."""
    if parts == 1:
        return x
    rows, length, *rest = x.shape
    return jnp.moveaxis(x.reshape(parts, rows // parts, length, *rest), 0, 1).reshape(-1, parts * length, *rest)
