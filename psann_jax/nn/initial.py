"""Initialisers of the parameters of a network, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
      output: of a matrix whose result is added to the residual stream; None: as kernel.
    """

    embedding: Init
    kernel: Init
    bias: Callable[[int], Init]
    output: Init | None = None

    def of_outputs(self) -> "Initial":
        """Returns the initialisers of a layer whose result is added to the residual stream."""
        return replace(self, kernel=self.output or self.kernel)


XAVIER = Initial(normal(0.02), xavier_uniform, lambda fan_in: constant(0.0))

# small: as in GPT-2 (Radford et al., 2019). reference: the defaults of PyTorch. zero_output: every block starts as the
# identity (Zhang, Dauphin and Ma, 2019, "Fixup Initialization").
INITIALS = {
    "xavier": XAVIER,
    "zero_output": replace(XAVIER, output=constant(0.0)),
    "small": Initial(normal(0.02), normal(0.02), lambda fan_in: constant(0.0)),
    "reference": Initial(normal(1.0), uniform_by_inputs, _uniform),
}
