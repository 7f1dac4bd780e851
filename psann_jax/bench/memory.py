"""Memory of a training step, as the compiler reports it, for batch sizes and rematerialisations.

Nothing runs unless the steps are to be timed too, which needs the memory.
"""

import statistics
from typing import Any

import jax

from psann_jax.bench.random_task import random_task, with_vocabulary
from psann_jax.bench.turns import log
from psann_jax.bench.workers import Worker
from psann_jax.config import Config
from psann_jax.config.families import family
from psann_jax.config.io import parse, to_dict
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.hardware import device_description
from psann_jax.train.mesh import batch_sharding, bytes_per_device, check_rows
from psann_jax.train.micro_batches import compile_update
from psann_jax.train.step import state_spec


def all_remats(config: Config) -> list[str]:
    """Returns the values of train.remat that the network of the experiment supports."""
    return list(family(config.model.base).get("network").REMATS)


def measure(config: Config, batch_sizes: list[int], remats: list[str], *, n_steps: int = 0) -> dict[str, Any]:
    """Compiles the training step for each batch size with each rematerialisation.

    Args:
      config: the experiment; random data replace its own.
      batch_sizes: windows or puzzles per step.
      remats: values of train.remat.
      n_steps: steps to time; 0 runs none.

    Returns:
      cases, temp_gib of the first case, device and config. A case has batch_size, remat, temp_gib (temporary memory per
      device), argument_gib (state and batch) and step_s (median seconds, None if not timed).

    Raises:
      UserError: a batch size or remat does not fit the config.
    """
    config = with_vocabulary(config)
    # All are checked before the first is compiled, which can take minutes.
    sized = [(size, remat, _sized(config, size, remat)) for size in batch_sizes for remat in remats]
    cases = []
    for size, remat, case in sized:
        log(f"batch {size}, remat {remat}")
        cases.append({"batch_size": size, "remat": remat, **_memory(case), "step_s": _median_step(case, n_steps)})
    first = {"temp_gib": cases[0]["temp_gib"]}
    return {**first, "cases": cases, "device": device_description(), "config": to_dict(config)}


def _sized(config: Config, batch_size: int, remat: str) -> Config:
    """Returns the experiment with another batch and rematerialisation; raises UserError if they do not fit."""
    settings = to_dict(config)
    settings["train"] |= {"batch_tokens": batch_size * config.data.max_length, "remat": remat}
    case = parse(settings)
    task, mesh = random_task(case), make_mesh(case.mesh)
    task.check_mesh(mesh)
    check_rows(mesh, case)
    return case


def _memory(config: Config) -> dict[str, float]:
    task, mesh = random_task(config), make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        spec = state_spec(task.network, config.train, mesh)
        batch, shapes = batch_sharding(mesh), task.batch_shapes(config.batch_size)
        step = compile_update(task, config.train, spec, (batch, shapes), config.seed)
    arguments = bytes_per_device(spec.abstract, spec.shardings)
    arguments += bytes_per_device(shapes, dict.fromkeys(shapes, batch))
    return {"temp_gib": (step.memory_bytes() - arguments) / 2**30, "argument_gib": arguments / 2**30}


def _median_step(config: Config, n_steps: int) -> float | None:
    if not n_steps:
        return None
    with Worker("step", "psann_jax.bench.ours", config) as worker:
        worker.ask("run", 2)
        return statistics.median(worker.ask("run", n_steps))


def report(result: dict[str, Any]) -> str:
    """Formats the result of `measure` as a table."""
    config = result["config"]
    lines = [
        f"{result['device']}; {config['model']['base']}, {config['train']['precision']}; a training step, per device",
        f"{'batch':>8}  {'remat':<12}{'temporary GiB':>15}{'state and batch GiB':>21}{'step ms':>10}",
    ]
    for case in result["cases"]:
        step = "" if case["step_s"] is None else f"{1000 * case['step_s']:,.0f}"
        lines.append(
            f"{case['batch_size']:>8,}  {case['remat']:<12}{case['temp_gib']:>15.3f}{case['argument_gib']:>21.3f}"
            f"{step:>10}"
        )
    return "\n".join(lines)
