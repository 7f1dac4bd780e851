"""GPU-01, the environment and one update; GPU-02, training in 16 bits."""

import math
import platform
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from psann_jax.config import Config, text_model
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.selftest import child
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import MIN_LOSS_DROP, Training, expect_loss_drop, loss_difference
from psann_jax.train.hardware import device_description

_PACKAGES = ("psann_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Nats. The predictions of an untrained model are close to uniform.
_MAX_FROM_UNIFORM = 1.0
# Relative. Measured over the bases on a CPU: up to 0.011 in bf16 and 0.006 in fp16.
MAX_DIFFERENCE = {"bf16": 0.03, "fp16": 0.02}


def system() -> dict[str, Any]:
    """Describes hardware and software; call it in a process that may use the device."""
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
    """Measures one update: loss, gradient norm, and whether it changes exactly the trainable arrays."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False))
    before = training.params()
    training.take(1)
    after, infos = training.params(), training.task.network.infos
    as_expected = jax.tree.map(lambda a, b, info: bool(np.any(a != b)) == info.trainable, before, after, infos)
    flat = jax.tree_util.tree_leaves_with_path(as_expected)
    return {
        "loss": training.losses[0],
        "loss_of_uniform": math.log(text_model(config).vocab_size),
        "grad_norm": training.metrics["grad_norm"],
        "n_params": training.task.network.n_params,
        "n_arrays": len(flat),
        "wrong_arrays": [jax.tree_util.keystr(p, simple=True, separator=".") for p, ok in flat if not ok],
    }


def check_environment(sizes: Sizes, machine: Machine) -> Findings:
    """Checks one update of each base: the first loss is close to chance, and every parameter is trained."""
    found = Findings({"backend": machine.platform})
    configs = {base: small_experiment(sizes, base, warmup_steps=0) for base in sizes.bases}
    found.measured["bases"] = child.in_child(child.for_each, measure_step, configs)
    for base, one in found.measured["bases"].items():
        distance = abs(one["loss"] - one["loss_of_uniform"])
        found.expect(
            distance <= _MAX_FROM_UNIFORM,
            f"{base}: the first loss is {one['loss']:.3f} nats, {distance:.3f} from that of a uniform distribution",
        )
        found.expect(0 < one["grad_norm"] < math.inf, f"{base}: the gradient norm is {one['grad_norm']}")
        wrong = ", ".join(one["wrong_arrays"])
        found.expect(not wrong, f"{base}: the update did not change trainable arrays or changed frozen ones: {wrong}")
    return found


def measure_losses(config: Config) -> dict[str, Any]:
    """Trains on one device; returns the losses and the number of skipped updates."""
    training = Training(config, make_mesh(ONE_DEVICE, all_devices=False)).take(config.train.steps)
    return {"losses": training.losses, "skipped_steps": training.metrics["skipped_steps"]}


def check_precision(sizes: Sizes, machine: Machine) -> Findings:
    """Checks that bf16 and fp16 training reproduce the losses of fp32 training, and that those fall."""
    del machine
    found = Findings()
    for base in sizes.bases:
        configs = {p: small_experiment(sizes, base, precision=p) for p in ("fp32", *MAX_DIFFERENCE)}
        runs = found.measured[base] = child.in_child(child.for_each, measure_losses, configs)
        reference = runs["fp32"]["losses"]
        expect_loss_drop(found, f"{base}, fp32", reference)
        for precision, limit in MAX_DIFFERENCE.items():
            difference = runs[precision]["difference"] = loss_difference(runs[precision]["losses"], reference)
            found.expect(difference <= limit, f"{base}: {precision} losses differ from fp32 by {difference:.2g}")
            # Identical losses mean that both runs used the same precision.
            found.expect(difference != 0, f"{base}: {precision} losses are identical to fp32 losses")
            skipped = runs[precision]["skipped_steps"]
            found.expect(skipped == 0, f"{base}: {precision} skipped {skipped:.0f} updates")
    return found


ENVIRONMENT = Check(
    "GPU-01",
    "environment and one update",
    {"loss_from_uniform": _MAX_FROM_UNIFORM, "wrong_arrays": 0},
    check_environment,
)
PRECISION = Check(
    "GPU-02",
    "training in bf16 and fp16 against fp32",
    {**{f"difference_{name}": limit for name, limit in MAX_DIFFERENCE.items()}, "fall": MIN_LOSS_DROP, "skipped": 0},
    check_precision,
)
