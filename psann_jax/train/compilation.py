"""Ahead-of-time compilation of the training and evaluation steps, before any array is created."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from psann_jax.config import Config
from psann_jax.ops import kernels
from psann_jax.train.mesh import batch_sharding, check_rows
from psann_jax.train.micro_batches import MicroBatches, OneProgram, compile_update
from psann_jax.train.step import StateSpec, make_eval_step, make_statistics_step, state_spec
from psann_jax.train.task import Task


@dataclass(frozen=True)
class Compiled:
    """The compiled steps of a run.

    Attributes:
      train_step: (state, batch) -> (state, metrics); see `compile_update`.
      eval_step: (params, batch) -> sums.
      statistics_step: (params, batch) -> scalars; None if the task has no statistics.
      spec: shapes and shardings of the state.
      batch: sharding of batches.
      eval_batch_size: rows in a batch of eval_step.
      seconds: compile time in total.
      saved_seconds: compile time saved by the persistent cache, see `enable_compilation_cache`.
      implementations: operation -> the implementations of it that the training step uses, see
        `psann_jax.ops.kernels.choose`.
      memory_mb: memory of the training step on one device in MB, state and batch included, as the compiler reports it.
    """

    train_step: OneProgram | MicroBatches
    eval_step: Any
    statistics_step: Any
    spec: StateSpec
    batch: NamedSharding
    eval_batch_size: int
    seconds: float
    saved_seconds: float
    implementations: dict[str, set[str]]
    memory_mb: float


def enable_compilation_cache(directory: Path) -> None:
    """Enables JAX's persistent compilation cache in a directory, unless JAX_COMPILATION_CACHE_DIR already sets one.

    The directory is created if missing and may be shared by processes and runs. JAX warns if it cannot be written.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(directory))


_saved_seconds: list[float] = []  # one entry per program found in the cache


@jax.monitoring.register_event_duration_secs_listener
def _count_saved(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event == "/jax/compilation_cache/compile_time_saved_sec":
        _saved_seconds.append(duration_secs)


def compile_steps(task: Task, config: Config, mesh: Mesh) -> Compiled:
    """Compiles the steps of a task for a mesh.

    Raises:
      ConfigError: the batch cannot be split over the mesh and the micro-batches.
    """
    check_rows(mesh, config)
    rows = config.batch_size // config.train.grad_accum
    began, already_saved = time.perf_counter(), sum(_saved_seconds)
    with jax.set_mesh(mesh):
        spec, batch = state_spec(task.network, config.train, mesh), batch_sharding(mesh)
        eval_step = make_eval_step(task, spec, batch)
        shapes = task.batch_shapes(config.batch_size)
        with kernels.recorded() as implementations:
            train_step = compile_update(task, config.train, spec, (batch, shapes), config.seed)
        eval_compiled = eval_step.lower(spec.abstract["params"], task.batch_shapes(rows)).compile()
        statistics_compiled = None
        if jax.eval_shape(task.statistics, spec.abstract["params"], task.batch_shapes(rows)):
            statistics = make_statistics_step(task, spec, batch)
            statistics_compiled = statistics.lower(spec.abstract["params"], task.batch_shapes(rows)).compile()
    return Compiled(
        train_step,
        eval_compiled,
        statistics_compiled,
        spec,
        batch,
        rows,
        seconds=time.perf_counter() - began,
        saved_seconds=sum(_saved_seconds) - already_saved,
        implementations=implementations,
        memory_mb=train_step.memory_bytes() / 1e6,
    )
