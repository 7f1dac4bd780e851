"""GPU-05 and GPU-06: training on several devices gives the losses and parameters of training on one."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from psann_jax.config import Config, MeshConfig
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.selftest import child
from psann_jax.selftest.check import Check, Findings, Machine, SkipError
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import MIN_LOSS_DROP, Training, expect_loss_drop, loss_difference, params_difference

_CPU_DEVICES = 8
_MAX_LOSS_DIFFERENCE = 1e-4
_MAX_PARAMS_DIFFERENCE = 1e-2
# Fraction of all parameters that a device may hold beyond its shard: small arrays are replicated.
_MAX_REPLICATED = 0.1
_DEVICE_COUNTS = (8, 4, 2)

Axes = tuple[int, int, int]


@dataclass(frozen=True)
class _Layout:
    """A mesh to train on.

    Attributes:
      axes: sizes of the mesh axes data, fsdp and tensor.
      fraction: fraction of the parameters that a device should hold.
    """

    axes: Axes
    fraction: float


def layouts(kind: str, n: int) -> dict[str, _Layout]:
    """Returns the meshes of a check by name.

    Args:
      kind: "data"; or "model" for fsdp, tensor and a mix of all three axes.
      n: number of devices, a power of two.
    """
    if kind == "data":
        return {"data": _Layout((n, 1, 1), 1.0)}
    meshes = {"fsdp": _Layout((1, n, 1), 1 / n), "tensor": _Layout((1, 1, n), 1 / n)}
    if n >= 4:
        meshes["mixed"] = _Layout((n // 4, 2, 2), 1 / 4)
    return meshes


def measure_parity(config: Config, meshes: dict[str, Axes], cpu_devices: int = 0) -> dict[str, Any]:
    """Trains on one device and on every mesh, and compares losses and parameters.

    Args:
      config: config of the runs.
      meshes: axis sizes by name.
      cpu_devices: number of devices to split the CPU into first; 0 uses the devices as they are.
    """
    if cpu_devices:
        child.force_cpu_devices(cpu_devices)
    # TF32, a GPU's default, rounds factors to 11 bits; a different order of sums would then look like an error.
    with jax.default_matmul_precision("highest"):
        one = Training(config, make_mesh(ONE_DEVICE, all_devices=False))
        start = one.params()
        one.take(config.train.steps)
        reference = one.params()
        results = {name: _on_mesh(config, axes, one.losses, reference, start) for name, axes in meshes.items()}
    return {"losses": one.losses, "meshes": results}


def _on_mesh(config: Config, axes: Axes, losses: list[float], reference: Any, start: Any) -> dict[str, Any]:
    training = Training(config, make_mesh(MeshConfig(*axes), all_devices=False)).take(config.train.steps)
    return {
        "axes": list(axes),
        "loss_difference": loss_difference(training.losses, losses),
        "params_difference": params_difference(training.params(), reference, start),
        "share_held": training.fraction_held(),
    }


def devices_to_use(machine: Machine) -> tuple[int, int]:
    """Returns the number of devices to train on, and the number to split the CPU into for that, or 0.

    Raises:
      SkipError: There is only one accelerator.
    """
    if machine.platform == "cpu" and machine.n_devices == 1:
        return _CPU_DEVICES, _CPU_DEVICES
    usable = next((n for n in _DEVICE_COUNTS if n <= machine.n_devices), 1)
    if usable == 1:
        raise SkipError(f"needs 2 devices, found 1 ({machine.platform})")
    return usable, 0


def check_parity(kind: str, sizes: Sizes, machine: Machine) -> Findings:
    """Checks that losses and parameters on several devices equal those on one."""
    n, forced = devices_to_use(machine)
    meshes = layouts(kind, n)
    found = Findings({"n_devices": n, "forced_cpu_devices": forced > 0})
    for base in sizes.parallel_bases:
        # Dropout and gradient accumulation must not depend on the layout either.
        config = small_experiment(sizes, base, dropout=0.1, grad_accum=2)
        axes = {name: mesh.axes for name, mesh in meshes.items()}
        result = found.measured[base] = child.in_child(measure_parity, config, axes, cpu_devices=forced)
        expect_loss_drop(found, f"{base} on one device", result["losses"])
        for name, layout in meshes.items():
            one = result["meshes"][name]
            where = f"{base} on {name} {layout.axes}"
            for what, limit in (("loss", _MAX_LOSS_DIFFERENCE), ("params", _MAX_PARAMS_DIFFERENCE)):
                difference = one[f"{what}_difference"]
                found.expect(difference <= limit, f"{where}: {what} differs by {difference:.2g}, more than {limit}")
            held = one["share_held"]
            found.expect(
                held <= layout.fraction + _MAX_REPLICATED, f"{where}: a device holds {held:.2f} of the parameters"
            )
    return found


_THRESHOLD = {
    "loss_difference": _MAX_LOSS_DIFFERENCE,
    "params_difference": _MAX_PARAMS_DIFFERENCE,
    "fall": MIN_LOSS_DROP,
}
DATA_PARALLEL = Check("GPU-05", "data-parallel training against one device", _THRESHOLD, partial(check_parity, "data"))
MODEL_PARALLEL = Check(
    "GPU-06",
    "FSDP and tensor-parallel training against one device",
    {**_THRESHOLD, "held_above_share": _MAX_REPLICATED},
    partial(check_parity, "model"),
)
