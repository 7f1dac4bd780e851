"""Activations with one factor per feature inside the nonlinearity: Snake, and GELU of c * z."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.sine import by_blocks, fast_sincos


def scaled_activation_reference(name: str, z: Array, factor_F: Array) -> Array:
    """Reference for `scaled_activation`, differentiated by JAX."""
    x = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if name == "snake":
        y = x + jnp.sin(factor_F * x) ** 2 / factor_F
    else:
        y = jax.nn.gelu(factor_F * x, approximate=False)
    return y.astype(z.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_activation(name: str, z: Array, factor_F: Array) -> Array:
    """Computes x + sin^2(a x) / a ("snake") or gelu(c x) ("scaled_gelu", exact) with a factor a or c per feature.

    The backward pass saves only z and the factors. Supports reverse-mode differentiation only. Source of Snake: Ziyin,
    Hartwig and Ueda (2020), "Neural Networks Fail to Learn Periodic Functions and How to Fix It".

    Args:
      name: a key of `SCALED`: snake or scaled_gelu.
      z: (..., F) of any float type; computed in float32, or in float64 if z is float64.
      factor_F: positive, float32 (float64 if z is float64).

    Returns:
      (..., F) in the type of z.
    """
    x = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return SCALED[name](x, factor_F)[0].astype(z.dtype)


def _forward(name: str, z: Array, factor_F: Array) -> tuple[Array, tuple[Array, Array]]:
    return scaled_activation(name, z, factor_F), (z, factor_F)


def _backward(name: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    z, factor_F = saved
    whole = partial(_gradients, name)
    # As for the sine: chosen when the program is lowered.
    dz, dfactor_F = lax.platform_dependent(z, factor_F, dy, cpu=partial(by_blocks, whole), default=whole)
    return dz, dfactor_F.astype(factor_F.dtype)


scaled_activation.defvjp(_forward, _backward)


def _gradients(name: str, z: Array, factor_F: Array, dy: Array) -> tuple[Array, Array]:
    """Returns the gradient of z and, summed over all axes but the last, that of the factors."""
    x = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    _, slope, by_factor = SCALED[name](x, factor_F)
    wide = dy.astype(x.dtype)
    return (wide * slope).astype(z.dtype), (wide * by_factor).sum(tuple(range(z.ndim - 1)))


Terms = tuple[Array, Array, Array]  # the value, and its derivatives by x and by the factor


def _snake(x: Array, a_F: Array) -> Terms:
    a = jnp.broadcast_to(a_F, x.shape)
    sin, cos = (jnp.sin(a * x), jnp.cos(a * x)) if x.dtype == jnp.float64 else fast_sincos(a * x)
    bump = sin * sin / a
    return x + bump, 1 + 2 * sin * cos, (2 * x * sin * cos - bump) / a


def _scaled_gelu(x: Array, c_F: Array) -> Terms:
    c = jnp.broadcast_to(c_F, x.shape)
    u = c * x
    probability = 0.5 * lax.erfc(-u * math.sqrt(0.5))
    slope = probability + u * jnp.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    return u * probability, c * slope, x * slope


SCALED: dict[str, Callable[[Array, Array], Terms]] = {"snake": _snake, "scaled_gelu": _scaled_gelu}
