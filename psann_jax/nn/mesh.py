"""The device mesh (data, fsdp, tensor) that training, sampling and loaded runs share."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from psann_jax.config import MeshConfig, require
from psann_jax.nn.partition import MESH_AXES

ONE_DEVICE = MeshConfig(data=1, fsdp=1, tensor=1)


def make_mesh(config: MeshConfig, *, all_devices: bool = True, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh of a config.

    Args:
      config: sizes of the axes; -1 stands for the devices that the other axes leave.
      all_devices: whether the mesh must cover every device of every process, as in training. If False, it covers the
        first devices only, as many as the sizes ask for.
      devices: the devices, which need not be there if programs are only compiled for them; None: those of all
        processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or exceed it.
    """
    config.check("mesh")
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    devices = jax.devices() if devices is None else devices
    n_devices = len(devices)
    plural = f"are {n_devices} devices" if n_devices > 1 else "is 1 device"
    found = f"but there {plural} ({devices[0].platform})"
    if all_devices or -1 in sizes.values():
        sizes = _fill_rest(sizes, n_devices, found)
    named = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    n_used = math.prod(sizes.values())
    fits = n_used == n_devices if all_devices else n_used <= n_devices
    require(fits, "mesh", f"is {named}, {found}")
    # Auto: the compiler places activations. With JAX's default, Explicit, embedding look-ups are type errors.
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=axis_types, devices=devices[:n_used])


def _fill_rest(sizes: dict[str, int], n_devices: int, found: str) -> dict[str, int]:
    """Replaces -1 by the number of devices that the other axes leave."""
    given = {axis: size for axis, size in sizes.items() if size not in (-1, 1)}
    n_given = math.prod(given.values())
    field = "mesh" if len(given) > 1 else f"mesh.{next(iter(given), '')}"
    shown = " x ".join(f"{axis} {size}" for axis, size in given.items()) if len(given) > 1 else n_given
    # Checked here, before -1 is replaced, so that the message names only what the config sets.
    require(n_devices % n_given == 0, field, f"is {shown}, {found}; it must divide that number")
    return {axis: n_devices // n_given if size == -1 else size for axis, size in sizes.items()}
