"""GPU-05 and GPU-06: a training divided over devices is the training on one device."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from psann_jax.config import Config, MeshConfig
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.selftest import child
from psann_jax.selftest.basics import LEAST_FALL
from psann_jax.selftest.check import Check, Findings, Machine, SkipError
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import Fall, Training, loss_difference, params_difference

_CPU_DEVICES = 8
_MOST_LOSS_DIFFERENCE = 1e-4
_MOST_PARAMS_DIFFERENCE = 1e-2
_MOST_UNDIVIDED = 0.1  # of all parameters, above the share that a device should hold: small arrays are on every device
_SIZES = (8, 4, 2)

Axes = tuple[int, int, int]


@dataclass(frozen=True)
class _Division:
    """A way to divide a training.

    Attributes:
      axes: of the mesh: data, fsdp and tensor.
      share: of the parameters that a device should hold.
    """

    axes: Axes
    share: float


def divisions(kind: str, n: int) -> dict[str, _Division]:
    """The meshes of a check on n devices, a power of two.

    Args:
      kind: "data", or "model" for fsdp, tensor and all three together.
      n: devices.
    """
    if kind == "data":
        return {"data": _Division((n, 1, 1), 1.0)}
    meshes = {"fsdp": _Division((1, n, 1), 1 / n), "tensor": _Division((1, 1, n), 1 / n)}
    if n >= 4:
        meshes["mixed"] = _Division((n // 4, 2, 2), 1 / 4)
    return meshes


def measure_parity(config: Config, meshes: dict[str, Axes], cpu_devices: int = 0) -> dict[str, Any]:
    """Losses on one device and on every mesh, with the differences.

    Args:
      config: the training.
      meshes: name -> sizes of the axes.
      cpu_devices: into how many the CPU is to be divided first; 0: leave the devices as they are.
    """
    if cpu_devices:
        child.force_cpu_devices(cpu_devices)
    # Products of TF32, a GPU's default, are rounded to 11 bits: a difference of order would not be seen from an error.
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
        "share_held": training.share_held(),
    }


def devices_to_use(machine: Machine) -> tuple[int, int]:
    """How many devices a training is divided over, and into how many a CPU has to be divided for that.

    Raises:
      SkipError: there is one accelerator only.
    """
    if machine.platform == "cpu" and machine.n_devices == 1:
        return _CPU_DEVICES, _CPU_DEVICES
    usable = next((n for n in _SIZES if n <= machine.n_devices), 1)
    if usable == 1:
        raise SkipError(f"needs 2 devices, there is 1 ({machine.platform})")
    return usable, 0


def check_parity(kind: str, sizes: Sizes, machine: Machine) -> Findings:
    """Losses and parameters of divided trainings are those of one device."""
    n, forced = devices_to_use(machine)
    meshes = divisions(kind, n)
    found = Findings({"n_devices": n, "forced_cpu_devices": forced > 0})
    for base in sizes.parallel_bases:
        # Dropout and accumulation too must not depend on the division.
        config = small_experiment(sizes, base, dropout=0.1, grad_accum=2)
        axes = {name: mesh.axes for name, mesh in meshes.items()}
        result = found.measured[base] = child.in_child(measure_parity, config, axes, cpu_devices=forced)
        fall = Fall.of(result["losses"])
        found.expect(
            fall.share >= LEAST_FALL, f"{base}: the loss on one device went from {fall.first:.3f} to {fall.last:.3f}"
        )
        for name, division in meshes.items():
            one = result["meshes"][name]
            where = f"{base} on {name} {division.axes}"
            for what, most in (("loss", _MOST_LOSS_DIFFERENCE), ("params", _MOST_PARAMS_DIFFERENCE)):
                difference = one[f"{what}_difference"]
                found.expect(difference <= most, f"{where}: {what} differs by {difference:.2g}, more than {most}")
            held = one["share_held"]
            found.expect(
                held <= division.share + _MOST_UNDIVIDED, f"{where}: a device holds {held:.2f} of the parameters"
            )
    return found


_THRESHOLD = {
    "loss_difference": _MOST_LOSS_DIFFERENCE,
    "params_difference": _MOST_PARAMS_DIFFERENCE,
    "fall": LEAST_FALL,
}
DATA_PARALLEL = Check("GPU-05", "data-parallel training against one device", _THRESHOLD, partial(check_parity, "data"))
MODEL_PARALLEL = Check(
    "GPU-06",
    "FSDP and tensor-parallel training against one device",
    {**_THRESHOLD, "held_above_share": _MOST_UNDIVIDED},
    partial(check_parity, "model"),
)
