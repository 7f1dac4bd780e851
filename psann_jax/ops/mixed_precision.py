"""Parameters in float32 applied to activations of 16 bits, with gradients that are summed in float32.

JAX's own rules cast a parameter to the type of the activations and sum its gradient over the tokens in that type. A sum
in bf16 stops growing once its terms are below 1/256 of it: 4096 equal contributions to a row of a table sum to 256. For
activations of 32 bits or more, all functions here are the plain expressions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def add_bias(x: Array, bias: Array) -> Array:
    """Computes x + bias in the type of x.

    Args:
      x: (..., F).
      bias: broadcastable to x, float32 or wider; its gradient is summed in its own type.
    """
    return _add_bias(x, bias) if _is_narrower(x.dtype, bias.dtype) else x + bias.astype(x.dtype)


def scale(x: Array, factor: Array) -> Array:
    """Computes x * factor in the type of the factor, rounded to the type of x.

    A factor of 0.9985 would be 1 in bf16. The backward pass saves x in its own type.

    Args:
      x: activations.
      factor: broadcastable to x, float32 or wider; its gradient is summed in its own type.
    """
    return _scale(x, factor) if _is_narrower(x.dtype, factor.dtype) else x * factor.astype(x.dtype)


def look_up(
    table_VxD: Array, ids: Array, dtype: jnp.dtype, place: Callable[[Array], Array] = lambda table: table
) -> Array:
    """Returns the rows of a table in another type.

    The table is cast before the look-up, so that `place` moves no more bytes than needed; the gradient is scattered
    and summed in the type of the table.

    Args:
      table_VxD: one row per id.
      ids: integers of any shape.
      dtype: of the result.
      place: constrains the sharding of the table before the look-up, and of its gradient after it.

    Returns:
      (*ids.shape, D).
    """
    if _is_narrower(jnp.dtype(dtype), table_VxD.dtype):
        return _look_up(jnp.dtype(dtype), place, table_VxD, ids)
    return place(table_VxD.astype(dtype))[ids]


def _is_narrower(dtype: jnp.dtype, other: jnp.dtype) -> bool:
    return dtype.itemsize < other.itemsize


def _sum_to(terms: Array, like: Array) -> Array:
    """Sums the terms over the axes along which `like` was broadcast; the transpose of a broadcast."""
    lead = terms.ndim - like.ndim
    repeated = tuple(lead + i for i, n in enumerate(like.shape) if n == 1)
    return terms.astype(like.dtype).sum((*range(lead), *repeated)).reshape(like.shape)


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias), lambda bias, g: (g, _sum_to(g, bias)))


@jax.custom_vjp
def _scale(x: Array, factor: Array) -> Array:
    return (x.astype(factor.dtype) * factor).astype(x.dtype)


def _scale_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, factor = saved
    wide = g.astype(factor.dtype)
    return (wide * factor).astype(x.dtype), _sum_to(wide * x.astype(factor.dtype), factor)


_scale.defvjp(lambda x, factor: (_scale(x, factor), (x, factor)), _scale_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _look_up(dtype: jnp.dtype, place: Callable[[Array], Array], table_VxD: Array, ids: Array) -> Array:
    return place(table_VxD.astype(dtype))[ids]


def _look_up_forward(
    dtype: jnp.dtype, place: Callable[[Array], Array], table_VxD: Array, ids: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _look_up(dtype, place, table_VxD, ids), (table_VxD, ids)


def _look_up_backward(
    dtype: jnp.dtype, place: Callable[[Array], Array], saved: tuple[Array, Array], g: Array
) -> tuple[Array, None]:
    table_VxD, ids = saved
    _, transpose = jax.vjp(lambda table: place(table)[ids], table_VxD)
    return transpose(g.astype(table_VxD.dtype))[0], None


_look_up.defvjp(_look_up_forward, _look_up_backward)
