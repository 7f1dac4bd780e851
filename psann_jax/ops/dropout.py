"""What dropout keeps, with half the random bits that `jax.random.bernoulli` draws."""

import jax
import jax.numpy as jnp
from jax import Array, lax

_LEVELS = 2**16


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> tuple[Array, float]:
    """Which elements stay.

    Drawing random numbers takes longer than all else in dropout, so an element gets 16 bits, two to a word: the rate is
    rounded to multiples of 2^-16.

    Args:
      key: of the draw.
      rate: the share that is dropped, in [0, 1).
      shape: of the elements, with one dimension at least.

    Returns:
      (shape) bool, and the share that stays, by which what stays is to be divided.
    """
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    bits = lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape[:-1], -1)[..., : shape[-1]]
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    return bits >= jnp.uint16(dropped), 1 - dropped / _LEVELS
