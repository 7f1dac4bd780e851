"""Normalisation over the feature axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.nn.linear import Order, same_order
from psann_jax.nn.partition import constant, param


class RMSNorm(nnx.Module):
    """x * scale / sqrt(mean(x^2) + 1e-6). Source: Zhang and Sennrich (2019)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = param(rngs, constant(1.0), (features,), "norm", (None,))

    def __call__(self, x: jax.Array, order: Order = same_order) -> jax.Array:
        """Normalises x (..., D) whose features are ordered by `order`; the result has the dtype of x."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
        return (wide * inverse * order(self.scale[...])).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias. Source: Ba, Kiros and Hinton (2016)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = param(rngs, constant(1.0), (features,), "norm", (None,))
        self.bias = param(rngs, constant(0.0), (features,), "norm", (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x (..., D); the result has the dtype of x."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
        return (centred * inverse * self.scale[...] + self.bias[...]).astype(x.dtype)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
