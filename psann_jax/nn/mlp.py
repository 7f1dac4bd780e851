"""The perceptron of a block and its activations."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx

from psann_jax.config import SineConfig
from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constrain
from psann_jax.nn.scaled import Scaled
from psann_jax.nn.sine import Sine
from psann_jax.ops.dropout import dropout
from psann_jax.ops.scaled import SCALED

Activation = Callable[[jax.Array], jax.Array]
# To add an activation without parameters, add it here and to the Literal of `mlp_activation` in the config.
ELEMENTWISE: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda z: jax.numpy.square(jax.nn.relu(z)),
    "silu": jax.nn.silu,
}


def make_activation(name: str, features: int, sine: SineConfig, axis: str | None, *, rngs: nnx.Rngs) -> Activation:
    """Creates an activation.

    Args:
      name: sine; snake or scaled_gelu; or a name in `ELEMENTWISE`: gelu (exact), gelu_tanh (its approximation in
        GPT-2), relu, relu2 (the square of relu) or silu (x * sigmoid(x)).
      features: F, of the inputs.
      sine: settings of the sine; those of its frequency apply to snake and scaled_gelu.
      axis: logical name of the feature axis.
      rngs: for the parameters of the activation.
    """
    if name in SCALED:
        return Scaled(name, features, sine, axis, rngs=rngs)
    return Sine(features, sine, axis, rngs=rngs) if name == "sine" else ELEMENTWISE[name]


@dataclass(frozen=True)
class MLPOptions:
    """Sizes and options of `MLP`.

    Attributes:
      d_model: features of input and output.
      d_mlp: hidden features.
      activation: a name for `make_activation`, or swiglu.
      sine: settings of the sine activation.
      dropout: rate on the output.
      inner_dropout: rate on the hidden features.
      bias: whether the layers have biases.
    """

    d_model: int
    d_mlp: int
    activation: str
    sine: SineConfig
    dropout: float = 0.0
    inner_dropout: float = 0.0
    bias: bool = True


class MLP(nnx.Module):
    """dropout(fc2(dropout(h))) with h = activation(fc1(x)), or for swiglu h = silu(fc_gate(x)) * fc1(x).

    Source of SwiGLU: Shazeer (2020), "GLU Variants Improve Transformer".
    """

    def __init__(self, options: MLPOptions, *, initial: Initial = XAVIER, rngs: nnx.Rngs):
        self.options = options
        d, f = options.d_model, options.d_mlp
        make = functools.partial(Linear, bias=options.bias, rngs=rngs)
        self.fc1 = make((d, f), ("embed", "mlp"), initial=initial)
        self.fc2 = make((f, d), ("mlp", "embed"), initial=initial.of_outputs())
        gated = options.activation == "swiglu"
        self.fc_gate = make((d, f), ("embed", "mlp"), initial=initial) if gated else None
        activation = "silu" if gated else options.activation
        self.act = make_activation(activation, f, options.sine, "mlp", rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `key` is for dropout."""
        inner_rate = self.options.inner_dropout
        inner_key, outer_key = (None, key) if key is None or not inner_rate else jax.random.split(key)
        h_BxLxF = self.fc1(x_BxLxD)
        h_BxLxF = self.act(h_BxLxF) if self.fc_gate is None else self.act(self.fc_gate(x_BxLxD)) * h_BxLxF
        h_BxLxF = constrain(h_BxLxF, "batch", "time", "mlp")
        h_BxLxF = dropout(h_BxLxF, inner_rate, inner_key)
        return dropout(self.fc2(h_BxLxF), self.options.dropout, outer_key)
