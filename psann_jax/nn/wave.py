"""The wave branch of WaveResNet: causal depthwise convolution, activation, projection."""

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import WaveConfig
from psann_jax.nn.causal_filter import causal_filter
from psann_jax.nn.context import Context, LayerCache
from psann_jax.nn.initial import Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.mlp import MLPOptions, make_activation
from psann_jax.nn.norm import RMSNorm
from psann_jax.nn.partition import param
from psann_jax.ops.causal_filter import next_history
from psann_jax.ops.dropout import dropout


def _tap_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """U(-1/sqrt(k), 1/sqrt(k)) for k taps."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Wave(nnx.Module):
    """dropout(proj(activation(conv(rmsnorm(x))))), the convolution depthwise, dilated and causal.

    It pads on the left only. The original code pads on both sides, so that each layer sees the next token.
    """

    def __init__(self, options: MLPOptions, config: WaveConfig, *, initial: Initial, rngs: nnx.Rngs):
        """Creates the parameters.

        Args:
          options: of the MLP of the same block; its d_model, activation, sine and bias apply here, too.
          config: the convolution, and the rate of dropout.
          initial: initialisers of the projection.
          rngs: with a `params` stream.
        """
        self.config, features = config, options.d_model
        self.norm = RMSNorm(features, rngs=rngs)
        self.conv = param(rngs, _tap_init, (config.kernel, features), "conv", (None, None))
        self.act = make_activation(options.activation, features, options.sine, None, rngs=rngs)
        self.proj = Linear(
            (features, features), ("embed", None), bias=options.bias, initial=initial.of_outputs(), rngs=rngs
        )

    def __call__(
        self,
        x_BxLxD: jax.Array,
        context: Context,
        cache: LayerCache | None,
        key: jax.Array | None,
        *,
        dilation: int | jax.Array,
        max_shift: int,
    ) -> tuple[jax.Array, LayerCache]:
        """Computes the branch, without adding the residual.

        Args:
          x_BxLxD: the residual stream.
          context: shared arrays.
          cache: {"wave"}: the last max_shift normalised inputs (B, W, D), or None.
          key: for dropout, or None.
          dilation: tokens between taps; may be traced.
          max_shift: static upper bound of (kernel - 1) * dilation.

        Returns:
          (B, L, D) and the new cache.
        """
        h = context.channels(self.norm(x_BxLxD))
        history = None if cache is None else cache["wave"].astype(h.dtype)
        y = causal_filter(
            h, self.conv[...], context.reach_BxL, dilation=dilation, max_shift=max_shift, history_BxWxD=history
        )
        out = dropout(self.proj(self.act(y)), self.config.dropout, key)
        if cache is None or history is None or context.valid_B is None:
            return out, {}
        return out, {"wave": next_history(history, h, context.valid_B).astype(cache["wave"].dtype)}
