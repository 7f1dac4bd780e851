"""Loss and gradients of an experiment with the kernels of this device, against those of the plain implementations."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from psann_jax.bench.random_task import random_task, with_vocabulary
from psann_jax.bench.turns import log
from psann_jax.bench.workers import Worker
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.nn.mesh import make_mesh
from psann_jax.ops import kernels
from psann_jax.train.hardware import device_description
from psann_jax.train.mesh import batch_sharding, check_rows, put_batch
from psann_jax.train.step import init_state, state_spec

# The kernels' error may exceed the plain implementations' by this factor, and by this fraction in any case, because
# they add in another order.
_FACTOR, _ALLOWANCE = 2.0, 2e-3
_NEGLIGIBLE = 1e-3  # errors of smaller gradients are given as fractions of this part of the norm of all gradients


def measure(config: Config) -> dict[str, Any]:
    """Compares one micro-batch of an experiment on this device, forward and backward, with the initial parameters.

    The reference is computed by the plain implementations in float32, with full precision of products, whatever
    model.attention demands.

    Args:
      config: the experiment; random data replace its own.

    Returns:
      ok; implementations, see `psann_jax.ops.kernels.choose`; loss (of the reference); errors, a dict with "loss" and
      the names of the parameters, of the relative errors of the kernels and of the plain implementations in the
      experiment's precision (of a gradient: norm of the difference by norm); failed, the names that are worse than
      rounding explains; device and config.
    """
    config = with_vocabulary(config)
    plain = _without_kernels(config)
    exact = replace(plain, train=replace(plain.train, precision="fp32"))
    with Worker("comparison", __name__) as worker:
        log("plain implementations in float32 ...")
        loss = worker.ask("reference", exact)
        log("plain implementations ...")
        errors_plain, _ = worker.ask("errors", plain)
        log("kernels ...")
        errors, implementations = worker.ask("errors", config)
        device = worker.facts["device"]
    failed = [name for name, error in errors.items() if not error <= _FACTOR * errors_plain[name] + _ALLOWANCE]
    return {
        "ok": not failed,
        "failed": failed,
        "loss": loss,
        "implementations": implementations,
        "errors": {name: {"kernels": error, "plain": errors_plain[name]} for name, error in errors.items()},
        "device": device,
        "config": to_dict(config),
    }


def _without_kernels(config: Config) -> Config:
    """Returns the experiment with the plain implementations of all operations."""
    # model.kernels does not turn off a kernel of attention that the config demands.
    demanded: dict[str, Any] = {"attention": "auto"} if hasattr(config.model, "attention") else {}
    return replace(config, model=replace(config.model, kernels="plain", **demanded))


class Comparison:
    """Computes loss and gradients in the process of a worker, where the reference stays in memory."""

    def __init__(self) -> None:
        """Computes nothing yet."""
        self.facts: dict[str, Any] = {"device": device_description()}
        self._reference: dict[str, jax.Array] = {}

    def reference(self, config: Config) -> float:
        """Computes what later results are compared with; returns the loss."""
        with jax.default_matmul_precision("highest"):
            self._reference, _ = _loss_and_gradients(config)
        return float(self._reference["loss"])

    def errors(self, config: Config) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Returns the relative errors of an experiment's loss and gradients, and the implementations it uses."""
        found, implementations = _loss_and_gradients(config)
        norms = {name: _norm(array) for name, array in self._reference.items()}
        # Some gradients are zero, such as those of unused parameters, or zero but for rounding, such as that of a bias
        # of keys, to which attention is blind.
        least = _NEGLIGIBLE * sum(norm**2 for name, norm in norms.items() if name != "loss") ** 0.5
        errors = {
            name: _norm(found[name] - expected) / max(norms[name], least) for name, expected in self._reference.items()
        }
        return {name: error if error == error else float("inf") for name, error in errors.items()}, implementations


def _norm(array: jax.Array) -> float:
    return float(jnp.linalg.norm(array.astype(jnp.float32).ravel()))


def _loss_and_gradients(config: Config) -> tuple[dict[str, jax.Array], dict[str, list[str]]]:
    """Returns the mean loss and the gradients of all parameters for one micro-batch, without dropout."""
    task, mesh = random_task(config), make_mesh(config.mesh)
    task.check_mesh(mesh)
    check_rows(mesh, config)
    rows = config.batch_size // config.train.grad_accum
    sharding = batch_sharding(mesh)
    with jax.set_mesh(mesh), kernels.recorded() as chosen:
        spec = state_spec(task.network, config.train, mesh)
        params = init_state(task.network, config.train, spec, config.seed)["params"]
        batch = put_batch({name: rest[:rows] for name, rest in next(task.train_batches(0)).items()}, sharding)

        def mean_loss(params: Any, batch: Any) -> jax.Array:
            return task.loss(params, batch, None, jnp.zeros((), jnp.int32))[0] / jnp.maximum(task.weight(batch), 1)

        loss, grads = jax.jit(jax.value_and_grad(mean_loss))(params, batch)
    flat = jax.tree_util.tree_leaves_with_path(grads)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
    implementations = {operation: sorted(names) for operation, names in chosen.items()}
    return {"loss": loss, **dict(sorted(named.items()))}, implementations


def make() -> Comparison:
    """Creates the comparison in the process of its worker."""
    return Comparison()


def report(result: dict[str, Any]) -> str:
    """Formats the result of `measure` as a table of the largest errors."""
    chosen = ", ".join(f"{op} {'/'.join(names)}" for op, names in result["implementations"].items())
    config = result["config"]
    lines = [
        f"{result['device']}; {config['model']['base']}, {config['train']['precision']}; {chosen or 'no kernels'}",
        f"{'relative error of':<40}{'kernels':>12}{'plain':>12}",
    ]
    shown = sorted(result["errors"], key=lambda name: -result["errors"][name]["kernels"])[:8]
    for name in dict.fromkeys(["loss", *shown, *result["failed"]]):
        error = result["errors"][name]
        lines.append(f"{name:<40}{error['kernels']:>12.2g}{error['plain']:>12.2g}")
    verdict = "agree within rounding" if result["ok"] else f"differ in {', '.join(result['failed'])}"
    return "\n".join([*lines, f"kernels and plain implementations {verdict}"])
