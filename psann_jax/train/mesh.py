"""Shardings of batches on the device mesh, and the rows that each process holds."""

from dataclasses import dataclass
from typing import cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from psann_jax.config import require
from psann_jax.nn.partition import RULES


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of an array that every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, RULES.spec(("batch",)))


def batch_shards(mesh: Mesh) -> int:
    """Parts that a batch is divided into."""
    return int(np.prod([mesh.shape[axis] for axis in ("data", "fsdp")]))


@dataclass(frozen=True)
class Share:
    """The rows of every batch that a process holds: part `index` of `count` equal ones."""

    index: int
    count: int


WHOLE = Share(0, 1)


def batch_share(sharding: NamedSharding) -> Share:
    """The share of this process. Processes whose devices hold the same rows, as with tensor parallelism, have the same.

    Raises:
      ConfigError: the devices of the processes do not hold rows that can be read apart.
    """
    parts = batch_shards(cast(Mesh, sharding.mesh))
    held: dict[int, set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((parts,)).items():
        held.setdefault(cast(jax.Device, device).process_index, set()).add(rows.start or 0)
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    require(
        sum(map(len, shares)) == parts and all(rows[-1] - rows[0] == len(rows) - 1 for rows in shares),
        "mesh",
        f"is {dict(sharding.mesh.shape)}, which gives the {len(held)} processes overlapping parts of a batch",
    )
    return Share(shares.index(tuple(sorted(held[jax.process_index()]))), len(shares))


def check_heads(mesh: Mesh, n_heads: int) -> None:
    """Raises ConfigError if tensor parallelism would split a head."""
    parts = mesh.shape["tensor"]
    require(n_heads % parts == 0, "mesh.tensor", f"is {parts}, which does not divide model.n_heads={n_heads}")


def check_window(mesh: Mesh, max_length: int) -> None:
    """Raises ConfigError if the mesh cannot split windows of that length, as mesh.sequence asks for."""
    parts = mesh.shape["tensor"]
    require(parts > 1, "mesh.sequence", "has no effect where mesh.tensor is 1; leave it at False")
    require(
        max_length % parts == 0,
        "data.max_length",
        f"is {max_length}, which mesh.tensor={parts} does not divide, as mesh.sequence needs it",
    )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """The global batch from the rows of this process, on the devices."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
