"""Initialisers of the parameters of a network, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from psann_jax.nn.partition import Init, constant, xavier_uniform


def normal(std: float) -> Init:
    """Returns an initialiser that draws from N(0, std^2)."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def _uniform(fan_in: int) -> Init:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def uniform_by_inputs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a kernel (in, out) from U(-a, a) with a = 1 / sqrt(in)."""
    return _uniform(shape[0])(key, shape)


@dataclass(frozen=True)
class Initial:
    """Initialisers of a network's parameters.

    Attributes:
      embedding: of tables.
      kernel: of a matrix (in, out).
      bias: of a bias, as a function of the number of inputs of the layer.
    """

    embedding: Init
    kernel: Init
    bias: Callable[[int], Init]


XAVIER = Initial(normal(0.02), xavier_uniform, lambda fan_in: constant(0.0))

# small: as in GPT-2 (Radford et al., 2019). reference: the defaults of PyTorch.
INITIALS = {
    "small": Initial(normal(0.02), normal(0.02), lambda fan_in: constant(0.0)),
    "reference": Initial(normal(1.0), uniform_by_inputs, _uniform),
}
