"""The device mesh (data, fsdp, context, tensor) that training, sampling and loaded runs share."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from psann_jax.config import MeshConfig, require
from psann_jax.nn.partition import MESH_AXES

ONE_DEVICE = MeshConfig(data=1, fsdp=1, tensor=1)


def make_mesh(config: MeshConfig, *, all_devices: bool = True, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh of a config.

    Slices, which a slow network joins, are outermost along the data axis, so that only the gradients' all-reduce
    crosses it.

    Args:
      config: sizes of the axes; -1 stands for the devices that the other axes leave.
      all_devices: whether the mesh must cover every device of every process, as in training. If False, it covers the
        first devices only, as many as the sizes ask for.
      devices: the devices, which need not be there if programs are only compiled for them; None: those of all
        processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or exceed it, or slices do not divide the data
        axis.
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
    slices = _slices(devices[:n_used], config.slices)
    require(
        sizes["data"] % len(slices) == 0,
        "mesh.data",
        f"is {sizes['data']}, which the {len(slices)} slices do not divide; data parallelism joins them (mesh.slices)",
    )
    shape = (sizes["data"] // len(slices), *(sizes[axis] for axis in MESH_AXES[1:]))
    # Axes that no group of torus dimensions has the size of are laid across parts of dimensions.
    grids = [mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True) for part in slices]
    return _mesh_of(np.concatenate(grids))


def _mesh_of(devices: np.ndarray) -> Mesh:
    # Auto: the compiler places activations. With JAX's default, Explicit, embedding look-ups are type errors.
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def without_context(mesh: Mesh) -> Mesh:
    """Returns the mesh with the devices along context moved to data: for decoding, which has one token at a time."""
    data, fsdp, context, tensor = mesh.devices.shape
    if context == 1:
        return mesh
    return _mesh_of(mesh.devices.swapaxes(1, 2).reshape(data * context, fsdp, 1, tensor))


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """Groups devices by slice; if they are said to be one slice, by the processes that hold them.

    Args:
      devices: of the mesh.
      count: number of slices; 0: as the devices say.

    Raises:
      ConfigError: the devices say otherwise, or cannot be divided.
    """
    by_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", 0), []).append(device)
    slices = [by_slice[index] for index in sorted(by_slice)]
    if count in (0, len(slices)):
        return slices
    require(len(slices) == 1, "mesh.slices", f"is {count}, but the devices are {len(slices)} slices")
    require(len(devices) % count == 0, "mesh.slices", f"is {count}, which does not divide the {len(devices)} devices")
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    size = len(devices) // count
    return [ordered[first : first + size] for first in range(0, len(devices), size)]


def _fill_rest(sizes: dict[str, int], n_devices: int, found: str) -> dict[str, int]:
    """Replaces -1 by the number of devices that the other axes leave."""
    given = {axis: size for axis, size in sizes.items() if size not in (-1, 1)}
    n_given = math.prod(given.values())
    field = "mesh" if len(given) > 1 else f"mesh.{next(iter(given), '')}"
    shown = " x ".join(f"{axis} {size}" for axis, size in given.items()) if len(given) > 1 else n_given
    # Checked here, before -1 is replaced, so that the message names only what the config sets.
    require(n_devices % n_given == 0, field, f"is {shown}, {found}; it must divide that number")
    return {axis: n_devices // n_given if size == -1 else size for axis, size in sizes.items()}
