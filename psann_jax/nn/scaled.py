"""Activations with one trained factor per feature inside the nonlinearity."""

import jax
from flax import nnx

from psann_jax.config import SineConfig
from psann_jax.nn.partition import param
from psann_jax.nn.sine import effective_frequency, raw_init
from psann_jax.ops.scaled import scaled_activation


class Scaled(nnx.Module):
    """Snake, x + sin^2(f x) / f, or GELU of f x, with f drawn, bounded and trained like the frequency of `Sine`."""

    def __init__(self, name: str, features: int, config: SineConfig, axis: str | None, *, rngs: nnx.Rngs):
        """Creates the raw frequencies.

        Args:
          name: snake or scaled_gelu.
          features: F.
          config: initial values and bounds of the frequency.
          axis: logical name of the feature axis.
          rngs: with a `params` stream.
        """
        self.name, self.config = name, config
        self.frequency = param(rngs, raw_init(config, "freq"), (features,), "sine", (axis,), config.trainable)

    def __call__(self, z: jax.Array) -> jax.Array:
        """Applies the activation to z (..., F); the result has the dtype of z."""
        return scaled_activation(self.name, z, effective_frequency(self.frequency, self.config))
