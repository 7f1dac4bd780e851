"""The device mesh (data, fsdp, tensor) that training, sampling and loaded runs share."""

import math

import jax
from jax.sharding import AxisType, Mesh

from psann_jax.config import MeshConfig, require
from psann_jax.nn.partition import MESH_AXES

ONE_DEVICE = MeshConfig(data=1, fsdp=1, tensor=1)


def make_mesh(config: MeshConfig, *, all_devices: bool = True) -> Mesh:
    """Builds the device mesh of a config.

    Args:
      config: sizes of the axes; -1 stands for the devices that the other axes leave.
      all_devices: whether the mesh must cover every device of every process, as in training. If False, it covers the
        first devices only, as many as the sizes ask for.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or exceed it.
    """
    config.check("mesh")
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    n_devices = jax.device_count()
    if all_devices or -1 in sizes.values():
        sizes = _fill_rest(sizes, n_devices)
    named = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    n_used = math.prod(sizes.values())
    fits = n_used == n_devices if all_devices else n_used <= n_devices
    require(fits, "mesh", f"is {named}, but there are {n_devices} devices")
    # Auto: the compiler places activations. With JAX's default, Explicit, embedding look-ups are type errors.
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _fill_rest(sizes: dict[str, int], n_devices: int) -> dict[str, int]:
    """Replaces -1 by the number of devices that the other axes leave."""
    left = n_devices
    for axis, size in sizes.items():
        if size != -1:
            require(
                left % size == 0, f"mesh.{axis}", f"is {size}, which does not divide the {left} devices left for it"
            )
            left //= size
    return {axis: left if size == -1 else size for axis, size in sizes.items()}
