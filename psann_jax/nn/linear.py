"""Dense layer."""

from collections.abc import Callable

import jax
from flax import nnx

from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.partition import param
from psann_jax.ops.linear import matmul
from psann_jax.ops.mixed_precision import add_bias

Order = Callable[[jax.Array], jax.Array]


def same_order(features: jax.Array) -> jax.Array:
    """Returns features as they are."""
    return features


class Linear(nnx.Module):
    """x @ kernel (+ bias), in the dtype of x."""

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        bias_learns: bool = True,
        kind: str = "matrix",
        initial: Initial = XAVIER,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters.

        Args:
          shape: of the kernel, (in, out).
          axes: logical axes of the kernel.
          bias: whether there is a bias.
          bias_learns: whether the bias is trained.
          kind: of the kernel, see `ParamInfo`.
          initial: initialisers.
          rngs: with a `params` stream.
        """
        self.bias_learns = bias_learns
        self.kernel = param(rngs, initial.kernel, shape, kind, axes)
        bias_kind = "gravity" if kind == "coordinate" else "bias"  # coordinates stay in float32
        self.bias = (
            param(rngs, initial.bias(shape[0]), shape[1:], bias_kind, axes[1:], trainable=bias_learns) if bias else None
        )

    def __call__(self, x: jax.Array, order: Order = same_order) -> jax.Array:
        """Maps x (..., in) to (..., out).

        Args:
          x: the input.
          order: reorders the last axis of the kernel and of the bias, and with it that of the result, which is larger.
        """
        y = matmul(x, order(self.kernel[...]))
        if self.bias is None:
            return y
        bias = order(self.bias[...])
        return add_bias(y, bias if self.bias_learns else jax.lax.stop_gradient(bias))
