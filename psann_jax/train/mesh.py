"""Sharding of batches over the device mesh, and the rows that each process loads."""

import math
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from psann_jax.config import require
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


@dataclass(frozen=True)
class BatchShard:
    """The rows of every batch that one process loads.

    Attributes:
      index: which of the equal parts, from 0.
      count: number of parts.
    """

    index: int
    count: int


WHOLE_BATCH = BatchShard(0, 1)


def local_batch_shard(sharding: NamedSharding) -> BatchShard:
    """Returns the part of a batch that this process loads.

    Processes whose devices hold the same rows, as with tensor parallelism across processes, load the same part.

    Raises:
      ConfigError: the rows of two processes overlap in part.
    """
    n_shards = num_batch_shards(cast(Mesh, sharding.mesh))
    rows_by_process: dict[int, set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((n_shards,)).items():
        rows_by_process.setdefault(cast(jax.Device, device).process_index, set()).add(rows.start or 0)
    parts = sorted({tuple(sorted(rows)) for rows in rows_by_process.values()})
    require(
        sum(map(len, parts)) == n_shards and all(rows[-1] - rows[0] == len(rows) - 1 for rows in parts),
        "mesh",
        f"is {dict(sharding.mesh.shape)}, which gives {len(rows_by_process)} processes overlapping parts of a batch",
    )
    return BatchShard(parts.index(tuple(sorted(rows_by_process[jax.process_index()]))), len(parts))


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


def check_window(mesh: Mesh, max_length: int) -> None:
    """Raises ConfigError if the mesh cannot split windows of `max_length` tokens for mesh.sequence."""
    parts = mesh.shape["tensor"]
    require(parts > 1, "mesh.sequence", "has no effect where mesh.tensor is 1; leave it at False")
    require(
        max_length % parts == 0,
        "data.max_length",
        f"is {max_length}, which mesh.tensor={parts} does not divide; mesh.sequence requires that",
    )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns the global batch on the devices, given the rows that this process loads."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
