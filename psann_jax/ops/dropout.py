"""Dropout, whose masks are hashes of the elements' places.

Random bits of `jax.random` are arrays in memory and cost more than all else in dropout; a hash is computed where it is
used, in the forward and again in the backward pass, so that no mask is ever stored.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

_LEVELS = 2**32


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate); does nothing without a key."""
    return x if key is None or rate == 0.0 else _drop(x, rate, key)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(1,))
def _drop(x: Array, rate: float, key: Array) -> Array:
    stays, share = kept(key, rate, x.shape)
    return jnp.where(stays, x / share, jnp.zeros((), x.dtype))


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> tuple[Array, float]:
    """Which elements stay.

    Args:
      key: of the draw, of any kind.
      rate: the share that is dropped, in [0, 1).
      shape: of the elements; arrays of more than 2^32 see the same mask again.

    Returns:
      (shape) bool, and the share that stays, by which what stays is to be divided.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        place = place * jnp.uint32(shape[axis]) + lax.broadcasted_iota(jnp.uint32, shape, axis)
    # Two rounds, so that two keys do not give one mask in another order.
    bits = _mix(_mix(place ^ first) + second)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    return bits >= jnp.uint32(dropped), 1 - dropped / _LEVELS


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words that flips every bit of the result with nearly even chance for a flipped bit of x.

    Source: Chris Wellons' search for integer hash functions, lowbias32 (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
