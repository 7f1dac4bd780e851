"""Sharding of batches over the device mesh, and the rows that each process loads."""

import functools
import math
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from psann_jax.config import Config, require
from psann_jax.data.batches import BatchShard
from psann_jax.nn.partition import RULES


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, RULES.spec(("batch",)))


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return int(np.prod([mesh.shape[axis] for axis in ("data", "fsdp")]))


def bytes_per_device(arrays: Any, shardings: Any) -> int:
    """Returns the size of one device's part of arrays, in bytes.

    Args:
      arrays: pytree of arrays or `jax.ShapeDtypeStruct`.
      shardings: their shardings, in the same structure.
    """
    sizes = jax.tree.map(lambda a, s: math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize, arrays, shardings)
    return sum(jax.tree.leaves(sizes))


@functools.cache
def local_batch_shard(sharding: NamedSharding) -> BatchShard:
    """Returns the rows of every batch that this process loads: those of its devices.

    Processes whose devices hold the same rows, as with tensor parallelism across processes, load the same ones.
    """
    count = num_batch_shards(cast(Mesh, sharding.mesh))
    parts: dict[int, set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((count,)).items():
        parts.setdefault(cast(jax.Device, device).process_index, set()).add(rows.start or 0)
    readers = {tuple(sorted(found)) for found in parts.values()}
    return BatchShard(tuple(sorted(parts.get(jax.process_index(), ()))), count, tuple(sorted(readers)))


def check_heads(mesh: Mesh, n_heads: int, n_kv_heads: int = 0) -> None:
    """Raises ConfigError if tensor parallelism would split an attention head.

    Args:
      mesh: the devices.
      n_heads: attention heads.
      n_kv_heads: heads of keys and values; 0: n_heads.
    """
    parts = mesh.shape["tensor"]
    for name, n in (("n_heads", n_heads), ("n_kv_heads", n_kv_heads)):
        require(n % parts == 0, "mesh.tensor", f"is {parts}, which does not divide model.{name}={n}")


def check_rows(mesh: Mesh, config: Config) -> None:
    """Raises ConfigError if the mesh cannot split the rows of a micro-batch into equal parts."""
    parts, rows = num_batch_shards(mesh), config.batch_size // config.train.grad_accum
    require(
        rows % parts == 0,
        "train.batch_tokens",
        f"makes micro-batches of {rows} windows, which cannot be divided over {parts} devices (mesh.data * mesh.fsdp)",
    )


def check_window(mesh: Mesh, max_length: int, *, sequence: bool) -> None:
    """Raises ConfigError if the mesh cannot split windows of `max_length` tokens for mesh.context or mesh.sequence."""
    context, tensor = mesh.shape["context"], mesh.shape["tensor"]
    require(
        max_length % context == 0,
        "data.max_length",
        f"is {max_length}, which mesh.context={context} does not divide",
    )
    if sequence:
        require(tensor > 1, "mesh.sequence", "has no effect where mesh.tensor is 1; leave it at False")
        require(
            max_length % tensor == 0,
            "data.max_length",
            f"is {max_length}, which mesh.tensor={tensor} does not divide; mesh.sequence requires that",
        )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the global batch on the devices.

    Args:
      batch: arrays of the rows that this process loads, see `local_batch_shard`.
      sharding: of arrays whose first axis is the batch.
    """
    shard = local_batch_shard(sharding)

    def put(rows: np.ndarray) -> jax.Array:
        n = len(rows) // len(shard.parts)  # rows of a part
        shape = (n * shard.count, *rows.shape[1:])
        parts = []
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            first = n * shard.parts.index((index[0].start or 0) // n)
            parts.append(jax.device_put(rows[first : first + n], device))
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return {name: put(rows) for name, rows in batch.items()}
