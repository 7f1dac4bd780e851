"""GPU-01, the environment and one update, and GPU-02, training in 16 bits."""

import math
import platform
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from psann_jax.config import Config
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.selftest import child
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import Fall, Training, loss_difference
from psann_jax.train.hardware import device_description

_PACKAGES = ("psann_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# An untrained model guesses: its loss is near that of the uniform distribution.
_MOST_FROM_UNIFORM = 1.0  # nats
LEAST_FALL = 0.3  # of the first loss, in 20 updates; 0.65 to 0.69 were measured
# Measured over the bases on a CPU: up to 0.011 in bf16 and 0.006 in fp16.
MOST_DIFFERENCE = {"bf16": 0.03, "fp16": 0.02}


def system() -> dict[str, Any]:
    """The machine and the software, from a process that may use the device."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "os": platform.platform(),
        "host": platform.node(),
        "packages": {name: version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "device": device_description(),
        "n_devices": len(devices),
        "device_kinds": sorted({d.device_kind for d in devices}),
    }


def measure_step(config: Config) -> dict[str, Any]:
    """One update: loss, gradient norm, and whether it has changed the arrays that are trained and no others."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False))
    before = training.params()
    training.take(1)
    after, infos = training.params(), training.task.network.infos
    # A frozen array has no effect in this model, as the radius of a cutoff that jumps has no gradient.
    right = jax.tree.map(lambda a, b, info: bool(np.any(a != b)) == info.trainable, before, after, infos)
    flat = jax.tree_util.tree_leaves_with_path(right)
    return {
        "loss": training.losses[0],
        "loss_of_uniform": math.log(config.model.vocab_size),
        "grad_norm": training.metrics["grad_norm"],
        "n_params": training.task.network.n_params,
        "n_arrays": len(flat),
        "wrong_arrays": [jax.tree_util.keystr(p, simple=True, separator=".") for p, ok in flat if not ok],
    }


def check_environment(sizes: Sizes, machine: Machine) -> Findings:
    """One update of each base: it begins at chance, and every parameter takes part."""
    found = Findings({"backend": machine.platform})
    configs = {base: small_experiment(sizes, base, warmup_steps=0) for base in sizes.bases}
    found.measured["bases"] = child.in_child(child.for_each, measure_step, configs)
    for base, one in found.measured["bases"].items():
        off = abs(one["loss"] - one["loss_of_uniform"])
        found.expect(off <= _MOST_FROM_UNIFORM, f"{base}: the first loss {one['loss']:.3f} is {off:.3f} from uniform")
        found.expect(0 < one["grad_norm"] < math.inf, f"{base}: the gradient norm is {one['grad_norm']}")
        wrong = ", ".join(one["wrong_arrays"])
        found.expect(not wrong, f"{base}: the update left trainable arrays as they were or moved frozen ones: {wrong}")
    return found


def measure_losses(config: Config) -> dict[str, Any]:
    """Losses of a training on one device, and how many of its updates were skipped."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False)).take(config.train.steps)
    return {"losses": training.losses, "skipped_steps": training.metrics["skipped_steps"]}


def check_precision(sizes: Sizes, machine: Machine) -> Findings:
    """Training in bf16 and in fp16 follows training in fp32, which learns."""
    del machine
    found = Findings()
    for base in sizes.bases:
        configs = {p: small_experiment(sizes, base, precision=p) for p in ("fp32", *MOST_DIFFERENCE)}
        runs = found.measured[base] = child.in_child(child.for_each, measure_losses, configs)
        reference = runs["fp32"]["losses"]
        fall = Fall.of(reference)
        found.expect(fall.share >= LEAST_FALL, f"{base}: the fp32 loss went from {fall.first:.3f} to {fall.last:.3f}")
        for precision, most in MOST_DIFFERENCE.items():
            difference = runs[precision]["difference"] = loss_difference(runs[precision]["losses"], reference)
            found.expect(difference <= most, f"{base}: {precision} losses differ from fp32 by {difference:.2g}")
            # Equal to the last bit: then both were computed in the same precision.
            found.expect(difference != 0, f"{base}: {precision} losses equal those of fp32")
            skipped = runs[precision]["skipped_steps"]
            found.expect(skipped == 0, f"{base}: {precision} skipped {skipped:.0f} updates")
    return found


ENVIRONMENT = Check(
    "GPU-01",
    "environment and one update",
    {"loss_from_uniform": _MOST_FROM_UNIFORM, "wrong_arrays": 0},
    check_environment,
)
PRECISION = Check(
    "GPU-02",
    "training in bf16 and fp16 against fp32",
    {**{f"difference_{name}": most for name, most in MOST_DIFFERENCE.items()}, "fall": LEAST_FALL, "skipped": 0},
    check_precision,
)
