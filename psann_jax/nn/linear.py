"""Dense layer and dropout."""

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.nn.partition import Init, constant, param, xavier_uniform
from psann_jax.ops.linear import matmul


class Linear(nnx.Module):
    """x @ kernel (+ bias), in the dtype of x."""

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        init: Init | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters.

        Args:
          shape: of the kernel, (in, out).
          axes: its logical axes.
          bias: whether there is one.
          init: of kernel and bias; None: the kernel starts Xavier uniform, the bias at 0.
          rngs: with a `params` stream.
        """
        self.kernel = param(rngs, init or xavier_uniform, shape, "matrix", axes)
        self.bias = param(rngs, init or constant(0.0), shape[1:], "bias", axes[1:]) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x (..., in) to (..., out)."""
        y = matmul(x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate); does nothing without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
