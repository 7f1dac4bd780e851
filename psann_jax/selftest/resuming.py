"""GPU-08: a run that is stopped and resumed equals an uninterrupted run."""

import contextlib
import io
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psann_jax.config import Config
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.selftest import child
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import MIN_LOSS_DROP, expect_loss_drop, make_task
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.step import state_spec


class _StoppableTask(LanguageModel):
    """Records the step a run starts from, and can stop the run early."""

    started_at: int | None = None
    stop_at: int | None = None

    def train_batches(self, start_step: int, shard: BatchShard = WHOLE_BATCH) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches; sends SIGTERM to this process, as a scheduler does, before the batch of step `stop_at`."""
        self.started_at = start_step
        return self._stoppable(super().train_batches(start_step, shard), start_step)

    def _stoppable(self, batches: Iterator[dict[str, np.ndarray]], step: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            if step == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            yield batch
            step += 1


def measure_resume(config: Config, stop_at: int, *, deterministic: bool = False) -> dict[str, Any]:
    """Trains once without interruption and once with a stop and a resume, and compares losses and final states.

    Args:
      config: config of the runs, which use all devices.
      stop_at: step whose batch triggers the stop.
      deterministic: makes GPU reductions use a fixed order.
    """
    if deterministic:
        child.make_deterministic()
    with tempfile.TemporaryDirectory() as directory:
        whole, parts = Path(directory) / "whole", Path(directory) / "parts"
        _train(config, whole)
        stopped = _train(config, parts, stop_at=stop_at)
        resumed = _train(config, parts)
        losses, resumed_losses = _losses(whole), _losses(parts)
        differing = _differing(_state(whole, config), _state(parts, config))
    return {
        "losses": losses,
        "resumed_losses": resumed_losses,
        "stopped_at": stopped["steps"] if "stopped" in stopped else None,
        "resumed_at": resumed["started_at"],
        "steps": resumed["steps"],
        "val_loss": resumed["val_loss"],
        "differing_arrays": differing,
    }


def _train(config: Config, workdir: Path, stop_at: int | None = None) -> dict[str, Any]:
    """Trains in a workdir without output; returns the summary with started_at added."""
    task = _StoppableTask(config, make_task(config).data)
    task.stop_at = stop_at
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        summary = loop.train(config, lambda: task, workdir)
    return {**summary, "started_at": task.started_at}


def _losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(workdir / METRICS) if row["kind"] == "train"]


def _state(workdir: Path, config: Config) -> Any:
    """Returns the state in the last checkpoint."""
    spec = state_spec(make_task(config).network, config.train, loop.make_mesh(config.mesh))
    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        return jax.device_get(checkpoints.restore(config.train.steps, spec.with_shardings()))


def _differing(a: Any, b: Any) -> list[str]:
    """Returns the names of the arrays that differ in any bit."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for (path, x), y in pairs if x.tobytes() != y.tobytes()
    ]


def resume_experiment(sizes: Sizes) -> Config:
    """Returns the config of the runs, with dropout, whose random numbers must continue, too."""
    return small_experiment(sizes, "waveresnet", dropout=0.1, log_every=1)


def check_resume(sizes: Sizes, machine: Machine) -> Findings:
    """Checks that the losses of all updates and the whole final state are equal to the last bit."""
    stop_at = sizes.steps // 2
    result = child.in_child(measure_resume, resume_experiment(sizes), stop_at, deterministic=machine.platform == "gpu")
    found = Findings(result)
    expect_loss_drop(found, "uninterrupted run", result["losses"])
    stopped = result["stopped_at"]
    found.expect(
        stopped is not None and 0 < stopped < sizes.steps,
        f"the run stopped at step {stopped}, not between 0 and {sizes.steps}",
    )
    resumed = result["resumed_at"]
    found.expect(resumed == stopped, f"the run stopped at step {stopped} but resumed at {resumed}")
    counts = len(result["losses"]), len(result["resumed_losses"])
    found.expect(
        counts == (sizes.steps, sizes.steps),
        f"the two runs have {counts[0]} and {counts[1]} losses, not {sizes.steps} each",
    )
    pairs = zip(result["losses"], result["resumed_losses"], strict=False)
    wrong = [i for i, (a, b) in enumerate(pairs, start=1) if a != b]
    found.expect(not wrong, f"the losses of updates {wrong} differ")
    differing = result["differing_arrays"]
    found.expect(not differing, f"{len(differing)} arrays of the final state differ: {', '.join(differing[:5])}")
    return found


RESUME = Check(
    "GPU-08",
    "stop and resume, equal to the last bit",
    {"differing_losses": 0, "differing_arrays": 0, "fall": MIN_LOSS_DROP},
    check_resume,
)
