"""What a run reports while it trains: to the terminal, the workdir, the loggers and the callbacks."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax
from jax.sharding import Mesh

from psann_jax.config import Config
from psann_jax.train.callbacks import Callbacks
from psann_jax.train.compilation import Compiled
from psann_jax.train.hardware import device_description
from psann_jax.train.loggers import Loggers
from psann_jax.train.metrics import MetricsWriter
from psann_jax.train.progress import Progress
from psann_jax.train.task import Task

_SHOWN = ("loss", "ppl", "ppl_avg25", "lr", "tokens_per_s")


@dataclass
class Reports:
    """Passes on the results of a run; a context that closes what it writes to.

    In all processes but the first, `progress` and `writer` are disabled, and there are no callbacks and no loggers.

    Attributes:
      progress: the display.
      callbacks: of the user.
      on_results: called when new rows are in metrics.jsonl.
      writer: of metrics.jsonl and TensorBoard.
      loggers: the services.
      workdir: of the run.
    """

    progress: Progress
    callbacks: Callbacks
    on_results: Callable[[], None]
    writer: MetricsWriter
    loggers: Loggers
    workdir: Path
    _has_warned: bool = False  # of a batch without targets

    def __enter__(self) -> "Reports":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self.writer)
            self.loggers.__exit__(kind, error, trace)

    def header(self, config: Config, task: Task, compiled: Compiled, start: Mapping[str, object]) -> None:
        """Shows facts about the run, last those about its start, and warnings."""
        mesh = cast(Mesh, compiled.batch.mesh)
        facts: dict[str, object] = {
            "workdir": self.workdir,
            "model": f"{config.model.base}, {task.network.size()}",
            **task.describe(),
            "device": device_description(),
            "mesh": " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
            "compiled": f"in {compiled.seconds:.1f} s"
            + (f"; the cache saved {compiled.saved_seconds:.1f} s" if compiled.saved_seconds > 0 else ""),
            "memory": f"{compiled.memory_mb:,.0f} MB per device estimated for a training step",
        }
        if os.environ.get("XLA_FLAGS"):
            facts["XLA flags"] = os.environ["XLA_FLAGS"]
        if mesh.devices.flat[0].platform != "cpu":
            facts["kernels"] = ", ".join(
                f"{operation} {' and '.join(sorted(names))}" for operation, names in compiled.implementations.items()
            )
        self.progress.header({**facts, **start})
        warmup, steps = config.train.warmup_steps, config.train.steps
        if warmup >= steps:
            self.progress.message(
                f"warning: train.warmup_steps is {warmup}, but train.steps is {steps}; the learning rate only rises"
            )
        for line in task.warnings():
            self.progress.message(f"warning: {line}")

    def begin(self, config: Config, step: int, stop: Callable[[str], None]) -> None:
        """Starts the loggers and calls `on_train_begin`.

        Args:
          config: the settings of the run.
          step: number of updates done.
          stop: ends the run at the next step boundary; its argument says what asked for it.

        Raises:
          UserError: the workdir cannot be written.
        """
        if jax.process_index() == 0:
            self.loggers.start(config, self.workdir)
        self.callbacks.begin(config, step, stop)

    def step(self, step: int, metrics: Mapping[str, float], *, is_row: bool) -> None:
        """Reports an update; `is_row`: also as a row of metrics.jsonl.

        Raises:
          UserError: the row cannot be written.
        """
        self.progress.update(step, {name: metrics[name] for name in _SHOWN})
        if math.isnan(metrics["loss"]) and not metrics["bad_steps"] and not self._has_warned:
            self._has_warned = True
            self.progress.message(
                f"warning: the batch of update {step} has no targets, so it has no loss and teaches nothing; raise "
                "data.max_length or train.batch_tokens"
            )
        if is_row:
            self.writer.write("train", step, metrics)
            self.loggers.log("train", step, metrics)
        self.callbacks.call("on_step_end", step, metrics)

    def evaluation(
        self,
        step: int,
        results: Mapping[str, float],
        statistics: Mapping[str, Any],
        texts: Sequence[Mapping[str, Any]],
    ) -> None:
        """Reports an evaluation, with statistics of the layers and sample texts.

        Raises:
          UserError: the row cannot be written.
        """
        if texts:
            self.writer.write_texts(step, texts)
            self.loggers.log_texts(step, texts)
        row = {**results, **statistics}
        self.writer.write("eval", step, row)
        self.loggers.log("eval", step, row)
        self.progress.evaluation(step, results)
        self.callbacks.call("on_evaluate_end", step, results)

    def checkpoint(self, step: int, path: Path) -> None:
        """Reports that a checkpoint is being written."""
        self.callbacks.call("on_checkpoint", step, path)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Reports the end of a run that no error has ended."""
        self.loggers.end = "stopped" if "stopped" in summary else "complete"
        self.callbacks.call("on_train_end", summary)
