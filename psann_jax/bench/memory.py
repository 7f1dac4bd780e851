"""Memory of a training step by the compiler's own account, without running it: batch sizes x rematerialisation.

With --time the steps are run too, which needs the memory.
"""

import statistics
from pathlib import Path
from typing import Any

import jax
from absl import flags

from psann_jax.bench.arguments import CONFIG, JSON, STEPS
from psann_jax.bench.random_task import random_task
from psann_jax.bench.random_text import with_vocabulary
from psann_jax.bench.results import check_writable, write_result
from psann_jax.bench.turns import say
from psann_jax.bench.workers import Worker
from psann_jax.config import Config, ConfigError
from psann_jax.config.io import parse, to_dict
from psann_jax.nn.mesh import make_mesh
from psann_jax.train.hardware import device_description
from psann_jax.train.mesh import batch_sharding
from psann_jax.train.step import make_train_step, state_spec

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", None, "Windows or puzzles in a step; left out: as configured.")
_REMATS = flags.DEFINE_list("remats", None, "Values of train.remat, or all; left out: as configured.")
_TIME = flags.DEFINE_bool("time", False, "Also run --steps of each, and give their median.")

_ALL = {True: ["none", "iteration", "nested"], False: ["none", "dots", "block", "full"]}  # by base sudoku or not


def main() -> None:
    """Compiles what the flags ask for, prints a table and writes the JSON file."""
    config = with_vocabulary(parse(CONFIG.value))
    if JSON.value:
        check_writable(Path(JSON.value))
    sizes = [_whole(size) for size in _BATCH_SIZES.value or [str(config.batch_size)]]
    remats = _REMATS.value or [config.train.remat]
    if remats == ["all"]:
        remats = _ALL[config.model.base == "sudoku"]
    result = measure(config, sizes, remats, n_steps=STEPS.value if _TIME.value else 0)
    print(report(result))
    if JSON.value:
        write_result(Path(JSON.value), result)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch_sizes: {text!r} is no number of windows or puzzles")
    return int(text)


def measure(config: Config, batch_sizes: list[int], remats: list[str], *, n_steps: int = 0) -> dict[str, Any]:
    """Compiles the training step for each batch size with each rematerialisation.

    Args:
      config: the experiment, with model.vocab_size set; its data are random.
      batch_sizes: windows or puzzles in a step.
      remats: values of train.remat.
      n_steps: that are timed; 0: none are taken.

    Returns:
      cases, of each: batch_size, remat, temp_gib (temporary memory of a device), argument_gib (state and batch),
      step_s (the median, None if not timed); temp_gib, of the first case; device and config.

    Raises:
      UserError: a batch size or remat does not fit the config.
    """
    cases = []
    for size in batch_sizes:
        for remat in remats:
            say(f"batch {size}, remat {remat}")
            settings = to_dict(config)
            settings["train"] |= {"batch_tokens": size * config.data.max_length, "remat": remat}
            case = parse(settings)
            cases.append({"batch_size": size, "remat": remat, **_memory(case), "step_s": _median_step(case, n_steps)})
    first = {"temp_gib": cases[0]["temp_gib"]}
    return {**first, "cases": cases, "device": device_description(), "config": to_dict(config)}


def _memory(config: Config) -> dict[str, float]:
    task, mesh = random_task(config), make_mesh(config.mesh)
    task.check_mesh(mesh)
    with jax.set_mesh(mesh):
        spec = state_spec(task.network, config.train, mesh)
        step = make_train_step(task, config.train, spec, batch_sharding(mesh), config.seed)
        found = step.lower(spec.abstract, task.batch_shapes(config.batch_size)).compile().memory_analysis()
    return {"temp_gib": found.temp_size_in_bytes / 2**30, "argument_gib": found.argument_size_in_bytes / 2**30}


def _median_step(config: Config, n_steps: int) -> float | None:
    if not n_steps:
        return None
    with Worker("step", "psann_jax.bench.ours", config) as worker:
        worker.ask("run", 2)
        return statistics.median(worker.ask("run", n_steps))


def report(result: dict[str, Any]) -> str:
    """The result of `measure` as a table."""
    config = result["config"]
    lines = [
        f"{result['device']}; {config['model']['base']}, {config['train']['precision']}; a training step of one device",
        f"{'batch':>8}  {'remat':<12}{'temporary GiB':>15}{'state and batch GiB':>21}{'step ms':>10}",
    ]
    for case in result["cases"]:
        step = "" if case["step_s"] is None else f"{1000 * case['step_s']:,.0f}"
        lines.append(
            f"{case['batch_size']:>8,}  {case['remat']:<12}{case['temp_gib']:>15.3f}{case['argument_gib']:>21.3f}"
            f"{step:>10}"
        )
    return "\n".join(lines)
