"""Parameters with logical axes, and the rules that map these to mesh axes.

A parameter names its axes once, where it is made (`param`). `ShardingRules` says which mesh axis each logical
axis is split over; nothing else in the project knows about both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from psann_jax.config import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ParamInfo:
    """What the trainer must know of a parameter.

    Attributes:
      kind: matrix, embedding, conv, gate, norm, bias, sine, alpha, gravity (of its scores), coordinate (matrices to and
        from coordinates) or table (of coordinates and masses); decides weight decay, Muon and what the sampler casts.
      axes: logical axis names, one a dimension; the first is "layers" where layers are stacked.
      trainable: whether an optimizer may change it.
    """

    kind: str
    axes: tuple[str | None, ...]
    trainable: bool = True


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axis that each logical axis is split over; None is not split."""

    batch: MeshAxes = ("data", "fsdp")
    layers: MeshAxes = None
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        Raises:
          ConfigError: two axes of the array would be split over the same mesh axis.
        """
        entries: list[MeshAxes] = [None if a is None else getattr(self, a) for a in axes]
        used = [m for e in entries if e for m in ((e,) if isinstance(e, str) else e)]
        if len(set(used)) != len(used):
            raise ConfigError(f"mesh: logical axes {axes} map to {entries}, which uses a mesh axis twice")
        return PartitionSpec(*entries)


RULES = ShardingRules()

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def param(
    rngs: nnx.Rngs, init: Init, shape: tuple[int, ...], kind: str, axes: tuple[str | None, ...], trainable: bool = True
) -> nnx.Param:
    """A float32 parameter that carries its `ParamInfo` as metadata."""
    assert len(axes) == len(shape), (axes, shape)
    return nnx.Param(init(rngs.params(), shape), info=ParamInfo(kind, axes, trainable))


def constant(value: float) -> Init:
    """Initialises with one value."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def xavier_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Glorot and Bengio (2010): U(-a, a) with a = sqrt(6 / (fan_in + fan_out))."""
    return jax.nn.initializers.xavier_uniform()(key, shape, jnp.float32)


def info_tree(state: nnx.State) -> dict[str, Any]:
    """The ParamInfo of every parameter, as a nested dict shaped like the parameters."""

    def info(variable: Any) -> ParamInfo:
        made: ParamInfo = variable.get_metadata()["info"]
        stacked = variable.get_value().ndim > len(made.axes)
        return ParamInfo(made.kind, ("layers", *made.axes) if stacked else made.axes, made.trainable)

    return nnx.traversals.unflatten_mapping({path: info(v) for path, v in state.flat_state()})


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler how an activation with these logical axes is split over the current mesh, if any."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, RULES.spec(axes))
