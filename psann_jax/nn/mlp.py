"""The two-layer perceptron of a block and its activations."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx

from psann_jax.config import SineConfig
from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constrain
from psann_jax.nn.sine import Sine
from psann_jax.ops.dropout import dropout

Activation = Callable[[jax.Array], jax.Array]
# To add an activation without parameters, add it here and to the Literal of `mlp_activation` in the config.
ELEMENTWISE: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda z: jax.numpy.square(jax.nn.relu(z)),
}


def make_activation(name: str, features: int, sine: SineConfig, axis: str | None, *, rngs: nnx.Rngs) -> Activation:
    """Creates an activation.

    Args:
      name: sine, or a name in `ELEMENTWISE`: gelu (exact), relu or relu2 (the square of relu).
      features: F, of the inputs.
      sine: settings of the sine.
      axis: logical name of the feature axis.
      rngs: for the parameters of the sine.
    """
    return Sine(features, sine, axis, rngs=rngs) if name == "sine" else ELEMENTWISE[name]


@dataclass(frozen=True)
class MLPOptions:
    """Sizes and options of `MLP`.

    Attributes:
      d_model: features of input and output.
      d_mlp: hidden features.
      activation: a name for `make_activation`.
      sine: settings of the sine activation.
      dropout: rate on the output.
      inner_dropout: rate on the hidden features.
    """

    d_model: int
    d_mlp: int
    activation: str
    sine: SineConfig
    dropout: float = 0.0
    inner_dropout: float = 0.0


class MLP(nnx.Module):
    """dropout(fc2(dropout(activation(fc1(x))))), with biases."""

    def __init__(self, options: MLPOptions, *, initial: Initial = XAVIER, rngs: nnx.Rngs):
        self.options = options
        d, f = options.d_model, options.d_mlp
        self.fc1 = Linear((d, f), ("embed", "mlp"), bias=True, initial=initial, rngs=rngs)
        self.fc2 = Linear((f, d), ("mlp", "embed"), bias=True, initial=initial, rngs=rngs)
        self.act = make_activation(options.activation, f, options.sine, "mlp", rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `key` is for dropout."""
        inner_rate = self.options.inner_dropout
        inner_key, outer_key = (None, key) if key is None or not inner_rate else jax.random.split(key)
        h_BxLxF = constrain(self.act(self.fc1(x_BxLxD)), "batch", None, "mlp")
        h_BxLxF = dropout(h_BxLxF, inner_rate, inner_key)
        return dropout(self.fc2(h_BxLxF), self.options.dropout, outer_key)
