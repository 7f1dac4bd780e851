"""Compiles the training and the evaluation step before any array of the run is made."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from psann_jax.config import Config, require
from psann_jax.train.mesh import batch_sharding, batch_shards
from psann_jax.train.step import StateSpec, make_eval_step, make_statistics_step, make_train_step, state_spec


@dataclass(frozen=True)
class Compiled:
    """The compiled steps of a run and what they were compiled for.

    Attributes:
      train_step: (state, batch) -> (state, metrics).
      eval_step: (params, batch) -> sums.
      statistics_step: (params, batch) -> scalars; None if the task has none.
      spec: shapes and shardings of the state.
      batch: sharding of batches.
      eval_batch_size: windows in a batch of eval_step.
      seconds: that all compilations took.
      saved_seconds: that they would have taken more, had an earlier start not left its programs (`keep_programs`).
      memory_mb: of the training step on one device, state and batch included, by the compiler's account.
    """

    train_step: Any
    eval_step: Any
    statistics_step: Any
    spec: StateSpec
    batch: NamedSharding
    eval_batch_size: int
    seconds: float
    saved_seconds: float
    memory_mb: float


def keep_programs(directory: Path) -> None:
    """Has JAX keep what takes long to compile, for later starts, unless JAX_COMPILATION_CACHE_DIR says where.

    Args:
      directory: made if missing; may be shared by processes and runs. JAX warns if it cannot be written.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(directory))


_saved: list[float] = []  # seconds, of every program that was found


@jax.monitoring.register_event_duration_secs_listener
def _count_saved(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event == "/jax/compilation_cache/compile_time_saved_sec":
        _saved.append(duration_secs)


def compile_steps(task: Any, config: Config, mesh: Mesh) -> Compiled:
    """Compiles the steps of a task (`psann_jax.train.loop.Task`) for a mesh.

    Raises:
      ConfigError: the batch cannot be divided over the mesh and the micro-batches.
    """
    parts, rows = batch_shards(mesh), config.batch_size // config.train.grad_accum
    require(
        rows % parts == 0,
        "train.batch_tokens",
        f"makes micro-batches of {rows} windows, which cannot be divided over {parts} devices (mesh.data * mesh.fsdp)",
    )
    began, already_saved = time.perf_counter(), sum(_saved)
    with jax.set_mesh(mesh):
        spec, batch = state_spec(task.network, config.train, mesh), batch_sharding(mesh)
        train_step = make_train_step(task, config.train, spec, batch, config.seed)
        eval_step = make_eval_step(task, spec, batch)
        train_compiled = train_step.lower(spec.abstract, task.batch_shapes(config.batch_size)).compile()
        eval_compiled = eval_step.lower(spec.abstract["params"], task.batch_shapes(rows)).compile()
        statistics_compiled = None
        if jax.eval_shape(task.statistics, spec.abstract["params"], task.batch_shapes(rows)):
            statistics = make_statistics_step(task, spec, batch)
            statistics_compiled = statistics.lower(spec.abstract["params"], task.batch_shapes(rows)).compile()
    memory = train_compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        train_compiled,
        eval_compiled,
        statistics_compiled,
        spec,
        batch,
        rows,
        seconds=time.perf_counter() - began,
        saved_seconds=sum(_saved) - already_saved,
        memory_mb=(size + memory.temp_size_in_bytes) / 2**20,
    )
