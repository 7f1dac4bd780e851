"""The layout of a run on its mesh: how arrays are split, memory per device, and collectives."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from psann_jax.bench.random_task import random_task
from psann_jax.config import Config, MeshConfig
from psann_jax.nn.mesh import make_mesh
from psann_jax.nn.partition import MESH_AXES, mesh_axes
from psann_jax.train.compilation import compile_steps
from psann_jax.train.hardware import device_description
from psann_jax.train.mesh import bytes_per_device

_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


def simulate_devices(mesh: MeshConfig) -> None:
    """Makes the CPU appear as the number of devices that a mesh needs, to inspect a cluster's layout on a laptop.

    Call it before any other use of JAX. It has no effect if an axis is -1, if XLA_FLAGS sets the number of devices, or
    on an accelerator.
    """
    sizes = [getattr(mesh, axis) for axis in MESH_AXES]
    if -1 not in sizes and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", int(np.prod(sizes)))


def describe_layout(config: Config) -> str:
    """Compiles a training step, without running it, and describes it in tables of arrays, memory and collectives.

    Raises:
      UserError: the mesh does not fit the devices or the model.
    """
    task = random_task(config)
    config = task.config
    mesh = make_mesh(config.mesh)
    task.check_mesh(mesh)
    compiled = compile_steps(task, config, mesh)
    spec = compiled.spec
    infos = {_name(path): info for path, info in jax.tree_util.tree_leaves_with_path(task.network.infos)}
    lines = [
        f"{device_description()}; mesh " + " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "",
        f"{'parameter':<28}{'shape':>18}  {'axes':<26}{'split over':<34}{'MB per device':>14}",
    ]
    for name, array, sharding in _leaves(spec.abstract["params"], spec.shardings["params"]):
        axes = ", ".join(axis or "-" for axis in infos[name].axes)
        lines.append(
            f"{name:<28}{' x '.join(map(str, array.shape)):>18}  {axes:<26}{_split(sharding):<34}"
            f"{_megabytes(array, sharding):>14.2f}"
        )
    batch = task.batch_shapes(config.batch_size)
    parts = {"parameters": "params", "optimizer state": "opt_state", "average of the weights": "ema_params"}
    totals = {
        title: _total(spec.abstract[part], spec.shardings[part])
        for title, part in parts.items()
        if part in spec.abstract
    }
    totals["batch"] = sum(_megabytes(array, compiled.batch) for array in batch.values())
    lines += ["", f"{'memory':<28}{'MB per device':>18}", *(f"{name:<28}{mb:>18,.2f}" for name, mb in totals.items())]
    rest = max(compiled.memory_mb - sum(totals.values()), 0)
    lines += [
        f"{'activations and others':<28}{rest:>18,.2f}",
        f"{'total, from the compiler':<28}{compiled.memory_mb:>18,.2f}",
    ]
    return "\n".join([*lines, "", *_collective_lines(compiled.train_step.as_text())])


def _collective_lines(program: str) -> list[str]:
    """Lists the collectives in the text of a compiled program, with the total size of their results."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for result, kind in _COLLECTIVE.findall(program):
        counts[kind] += 1
        sizes[kind] += sum(_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(result))
    if not counts:
        return ["collectives: none"]
    lines = [f"{'collectives':<28}{'in the program':>18}{'MB of results':>18}"]
    lines += [f"{kind:<28}{n:>18}{sizes[kind] / 1e6:>18.2f}" for kind, n in sorted(counts.items())]
    return [*lines, "a collective in a loop over layers or micro-batches is counted once"]


def _bytes(dtype: str, dims: str) -> int:
    bits = re.search(r"\d+", dtype)
    return int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64)) * (int(bits[0]) // 8 if bits else 1)


def _leaves(arrays: Any, shardings: Any) -> Iterator[tuple[str, Any, NamedSharding]]:
    flat = zip(jax.tree_util.tree_leaves_with_path(arrays), jax.tree.leaves(shardings), strict=True)
    return ((_name(path), array, sharding) for (path, array), sharding in flat)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _split(sharding: NamedSharding) -> str:
    """Names the dimensions that are split and the axes that split them, for example "1: tensor 4"."""
    parts = []
    for i, entry in enumerate(sharding.spec):
        split = [f"{axis} {sharding.mesh.shape[axis]}" for axis in mesh_axes(entry) if sharding.mesh.shape[axis] > 1]
        if split:
            parts.append(f"{i}: {' x '.join(split)}")
    return ", ".join(parts) or "not split"


def _megabytes(array: Any, sharding: NamedSharding) -> float:
    """Size of one device's part in MB."""
    return float(np.prod(sharding.shard_shape(array.shape))) * array.dtype.itemsize / 1e6


def _total(arrays: Any, shardings: Any) -> float:
    return bytes_per_device(arrays, shardings) / 1e6
