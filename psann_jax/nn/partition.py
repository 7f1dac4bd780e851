"""Parameters with logical axes, and the rules that map logical axes to mesh axes.

A parameter names its axes once, where it is created (`param`). `ShardingRules` maps each logical axis to mesh axes;
nothing else in the project knows both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from psann_jax.config import ConfigError, require
from psann_jax.ops.kernels import CONTEXT_AXIS

MESH_AXES = ("data", "fsdp", CONTEXT_AXIS, "tensor")

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ParamInfo:
    """What the trainer needs to know about a parameter.

    Attributes:
      kind: matrix, embedding, conv, gate (factors of filters), mixing (matrices that start as the identity), norm,
        bias, sine (parameters of activations), alpha, gravity (parameters of its scores, and biases of coordinates),
        coordinate (matrices to and from coordinates) or table (of coordinates and masses). It determines weight
        decay, the use of Muon, and what the sampler casts.
      axes: logical axis names, one per dimension; the first is "layers" if layers are stacked.
      trainable: whether the optimizer updates it.
    """

    kind: str
    axes: tuple[str | None, ...]
    trainable: bool = True


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axes that each logical axis is sharded over; None: not sharded."""

    batch: MeshAxes = ("data", "fsdp")
    time: MeshAxes = CONTEXT_AXIS  # positions in a window
    sequence: MeshAxes = "tensor"  # positions between layers with mesh.sequence, see `Context.split`
    channels: MeshAxes = "tensor"  # features in a depthwise filter, see `Context.channels`
    layers: MeshAxes = None
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    positions: MeshAxes = None  # rows of a table with one row for each position in a window

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Returns the PartitionSpec of an array with these logical axes.

        Raises:
          ConfigError: two axes of the array would be sharded over the same mesh axis.
        """
        entries: list[MeshAxes] = [None if a is None else getattr(self, a) for a in axes]
        used = [m for e in entries for m in mesh_axes(e)]
        if len(set(used)) != len(used):
            raise ConfigError(f"mesh: logical axes {axes} map to {entries}, which uses a mesh axis twice")
        return PartitionSpec(*entries)

    def stored(self, axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """Returns the PartitionSpec of a parameter between steps, where JAX requires shards of equal size.

        If its mesh axis does not divide the vocabulary, the features are sharded over that axis instead. Inside a
        step, `constrain` still shards the vocabulary; XLA pads the last shard and excludes the padding from all
        results. So the parameter keeps its true size, and a checkpoint fits every mesh.
        """
        if "vocab" in axes and shape[axes.index("vocab")] % _parts(mesh, self.vocab):
            return replace(self, vocab=None, embed=(*mesh_axes(self.embed), *mesh_axes(self.vocab))).spec(axes)
        return self.spec(axes)


RULES = ShardingRules()


def mesh_axes(axes: MeshAxes) -> tuple[str, ...]:
    """Returns the mesh axes of an entry of the rules or of a PartitionSpec."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _parts(mesh: Mesh | AbstractMesh, axes: MeshAxes) -> int:
    return math.prod(mesh.shape[axis] for axis in mesh_axes(axes))


def param_shardings(mesh: Mesh, abstract: Any, infos: Any) -> Any:
    """Returns the NamedSharding of every parameter.

    Raises:
      ConfigError: mesh axes do not divide their dimension.
    """

    def sharding(path: Any, array: Any, info: ParamInfo) -> NamedSharding:
        spec = RULES.stored(info.axes, array.shape, mesh)
        for size, logical, axes in zip(array.shape, info.axes, spec, strict=True):
            parts = _parts(mesh, axes)
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            fields = " * ".join(f"mesh.{axis}" for axis in mesh_axes(axes))
            require(size % parts == 0, fields, f"is {parts}, which does not divide {logical}={size} of {name}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract, infos)


Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def param(
    rngs: nnx.Rngs, init: Init, shape: tuple[int, ...], kind: str, axes: tuple[str | None, ...], trainable: bool = True
) -> nnx.Param:
    """Creates a float32 parameter with its `ParamInfo` as metadata."""
    assert len(axes) == len(shape), (axes, shape)
    return nnx.Param(init(rngs.params(), shape), info=ParamInfo(kind, axes, trainable))


def constant(value: float) -> Init:
    """Returns an initialiser with a constant value."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def xavier_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)). Source: Glorot and Bengio (2010)."""
    return jax.nn.initializers.xavier_uniform()(key, shape, jnp.float32)


def info_tree(state: nnx.State) -> dict[str, Any]:
    """Returns the ParamInfo of every parameter, as a nested dict with the structure of the parameters."""

    def info(variable: Any) -> ParamInfo:
        made: ParamInfo = variable.get_metadata()["info"]
        stacked = variable.get_value().ndim > len(made.axes)
        return ParamInfo(made.kind, ("layers", *made.axes) if stacked else made.axes, made.trainable)

    return nnx.traversals.unflatten_mapping({path: info(v) for path, v in state.flat_state()})


def kinds_of(path: Any, info: ParamInfo) -> tuple[str, ...]:
    """Returns the names of a parameter's kind in settings such as `train.lr_scales`, the general one first.

    Args:
      path: of the parameter among all of the network, as JAX gives it.
      info: of the parameter.
    """
    keys = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    if info.kind == "embedding" and keys[0] == "head":
        return ("head",)
    return ("sine", f"sine_{keys[-1]}") if info.kind == "sine" else (info.kind,)


def freeze(infos: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Returns infos in which the parameters of some kinds are not trained.

    Args:
      infos: ParamInfo of every parameter of a network.
      kinds: as in `kinds_of`.

    Raises:
      ConfigError: no trained parameter is of one of the kinds, or none is left.
    """
    trained = set[str]()

    def frozen(path: Any, info: ParamInfo) -> ParamInfo:
        names = kinds_of(path, info)
        if info.trainable:
            trained.update(names)
        return replace(info, trainable=info.trainable and not set(kinds) & set(names))

    changed: dict[str, Any] = jax.tree_util.tree_map_with_path(frozen, infos)
    for kind in kinds:
        require(kind in trained, "train.freeze", f"names {kind}, but the model trains no such parameter; omit it")
    is_left = any(info.trainable for info in jax.tree.leaves(changed))
    require(is_left, "train.freeze", "leaves no parameter to train; omit a kind")
    return changed


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation with these logical axes over the current mesh, if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, RULES.spec(axes))


def shard_of(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[tuple[int, ...], str]:
    """Returns the shape of a device's part of an array with these logical axes, and why the parts are not equal.

    The reason is empty if they are; `per_shard` requires that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return shape, ""
    parts = [_parts(mesh, entry) for entry in RULES.spec(axes)]
    reason = "".join(
        f"cannot split {axis}={size} into {n} equal parts; "
        for axis, size, n in zip(axes, shape, parts, strict=True)
        if size % n
    )
    return tuple(-(-size // n) for size, n in zip(shape, parts, strict=True)), reason.removesuffix("; ")


def per_shard(f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Makes a function run on each device's part of its arrays; for kernels, which the compiler cannot partition.

    Args:
      f: function of arrays without communication between devices.
      in_axes: for each argument the logical axes of its dimensions, a tuple with None for a dimension that is not
        sharded; a pytree of tuples for a pytree of arrays. A `PartitionSpec` stands for itself.
      out_axes: the same for the result.

    Returns:
      The function; without a mesh, `f` itself.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return f

    def is_axes(entry: Any) -> bool:
        return type(entry) is tuple and all(axis is None or isinstance(axis, str) for axis in entry)

    def spec(entry: Any) -> PartitionSpec:
        return entry if isinstance(entry, PartitionSpec) else RULES.spec(entry)

    def specs(axes: Any) -> Any:
        return jax.tree.map(spec, axes, is_leaf=is_axes)

    # Varying axes are not checked, because kernels do not declare those of their results.
    return jax.shard_map(f, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)
