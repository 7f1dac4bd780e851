"""The trainable damped sine activation of PSANN networks."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import SINE_PARAMETERS, SineConfig
from psann_jax.nn.partition import Init, param, per_shard, shard_of
from psann_jax.ops.sine import choose_sine, damped_sine

FREQUENCY_OFFSET = 1e-6  # keeps the frequency above 0 for every raw value
_LEAST = float(jnp.finfo(jnp.float32).eps)


def inverse_softplus(x: jax.Array) -> jax.Array:
    """The raw value whose softplus is x > 0, also for x whose exp(x) overflows."""
    return x + jnp.log(-jnp.expm1(-x))


class Sine(nnx.Module):
    """y = A * exp(-d * g(z)) * sin(f * z), with A, f and d trained per feature.

    The effective values are the softplus of the raw parameters, so that they stay positive, clamped to the bounds of
    the config. g(z) is |z|, max(z, 0) or 0. Source: the activation of PSANN-LM.
    """

    amplitude: nnx.Param
    frequency: nnx.Param
    decay: nnx.Param

    def __init__(self, features: int, config: SineConfig, axis: str | None, *, rngs: nnx.Rngs):
        """Creates the raw parameters.

        Args:
          features: F.
          config: initial values and bounds.
          axis: logical name of the feature axis.
          rngs: with a `params` stream.
        """
        self.config, self.axis = config, axis
        for name, key in zip(SINE_PARAMETERS, ("amp", "freq", "damp"), strict=True):
            unused = name == "decay" and config.decay_mode == "none"
            trainable = config.trainable and name in config.learnable and not unused
            setattr(self, name, param(rngs, raw_init(config, key), (features,), "sine", (axis,), trainable))

    def __call__(self, z: jax.Array) -> jax.Array:
        """Applies the activation to z (B, ..., F); the result has the dtype of z."""
        axis, mode = self.axis or "channels", self.config.decay_mode
        split = shard_of(z.shape[-1:], (axis,))[0] != z.shape[-1:]
        z_axes = (*("batch", "time")[: z.ndim - 1], *(None,) * (z.ndim - 3), axis)
        # Features that are on all devices stay there: the kernel would need parts of them, to be gathered afterwards.
        stays = split and self.axis is None
        implementation = "polynomial" if stays else choose_sine(z.dtype, mode, shard_of(z.shape, z_axes)[1])
        apply: Callable[..., jax.Array] = partial(damped_sine, decay_mode=mode, implementation=implementation)
        if implementation == "triton":
            apply = per_shard(apply, (z_axes, (axis,), (axis,), (axis,)), z_axes)
        return apply(z, *self.values())

    def values(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The effective A, f and d, each (F,)."""
        c = self.config
        amplitude = _clamp(jax.nn.softplus(_raw(self.amplitude)), c.amp_bounds)
        decay = _clamp(jax.nn.softplus(_raw(self.decay)), c.damp_bounds)
        return amplitude, effective_frequency(self.frequency, c), decay


def effective_frequency(variable: nnx.Param, config: SineConfig) -> jax.Array:
    """Returns the frequencies (F,) in use, of a parameter made by `raw_init`."""
    return _clamp(jax.nn.softplus(_raw(variable)) + FREQUENCY_OFFSET, config.freq_bounds)


def _raw(variable: nnx.Param) -> jax.Array:
    value: jax.Array = variable[...]
    return value if variable.get_metadata()["info"].trainable else jax.lax.stop_gradient(value)


def _clamp(x: jax.Array, bounds: tuple[float, ...]) -> jax.Array:
    return jnp.clip(x, bounds[0], bounds[1]) if bounds else x


def raw_init(config: SineConfig, key: str) -> Init:
    """Returns an initialiser of raw values: a constant, one uniform draw per layer, or a normal draw per feature.

    Args:
      config: initial values.
      key: amp, freq or damp.
    """
    mean, std = getattr(config, f"{key}_init"), getattr(config, f"{key}_init_std")
    low_high = getattr(config, f"{key}_range")

    def init(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if std:
            value = mean + std * jax.random.normal(rng, shape)
        elif low_high:
            value = jnp.full(shape, jax.random.uniform(rng, (), minval=low_high[0], maxval=low_high[1]))
        else:
            value = jnp.full(shape, mean)
        raw = inverse_softplus(jnp.maximum(value.astype(jnp.float32), _LEAST))
        return jnp.maximum(raw, math.log(_LEAST))

    return init
