"""The two-layer perceptron of a block and its activations."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from psann_jax.config import DecoderConfig, SineConfig, VanillaConfig
from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constrain
from psann_jax.nn.sine import Sine
from psann_jax.ops.dropout import dropout

Activation = Callable[[jax.Array], jax.Array]
ELEMENTWISE: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda z: jax.numpy.square(jax.nn.relu(z)),
}


def make_activation(name: str, features: int, config: SineConfig, axis: str | None, *, rngs: nnx.Rngs) -> Activation:
    """The activation sine, gelu (exact), relu or relu2 (its square); `axis` is the logical name of the feature axis."""
    return Sine(features, config, axis, rngs=rngs) if name == "sine" else ELEMENTWISE[name]


class MLP(nnx.Module):
    """dropout(fc2(activation(fc1(x)))), with biases."""

    def __init__(
        self,
        config: DecoderConfig | VanillaConfig,
        activation: str,
        *,
        inner_dropout: bool = False,
        initial: Initial = XAVIER,
        rngs: nnx.Rngs,
    ):
        """Args: config; activation, one of sine, gelu (exact) and relu; whether its output is dropped too; initial
        weights; rngs."""
        self.rate, self.inner_rate = config.dropout, config.dropout if inner_dropout else 0.0
        self.fc1 = Linear((config.d_model, config.d_mlp), ("embed", "mlp"), bias=True, initial=initial, rngs=rngs)
        self.fc2 = Linear((config.d_mlp, config.d_model), ("mlp", "embed"), bias=True, initial=initial, rngs=rngs)
        self.act = make_activation(activation, config.d_mlp, config.sine, "mlp", rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); `key` is for dropout."""
        inner_key, outer_key = (None, key) if key is None or not self.inner_rate else jax.random.split(key)
        h_BxLxF = constrain(self.act(self.fc1(x_BxLxD)), "batch", None, "mlp")
        h_BxLxF = dropout(h_BxLxF, self.inner_rate, inner_key)
        return dropout(self.fc2(h_BxLxF), self.rate, outer_key)
