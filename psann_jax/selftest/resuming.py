"""GPU-08: a run that is stopped and resumed is the run that was not."""

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
from psann_jax.selftest import child
from psann_jax.selftest.basics import LEAST_FALL
from psann_jax.selftest.check import Check, Findings, Machine
from psann_jax.selftest.sizes import Sizes, small_experiment
from psann_jax.selftest.training import Fall, make_task
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.mesh import WHOLE, Share
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.step import state_spec


class _Watched(LanguageModel):
    """Notes where a training begins, and ends it early if asked to."""

    started_at: int | None = None
    stop_at: int | None = None

    def train_batches(self, start_step: int, share: Share = WHOLE) -> Iterator[dict[str, np.ndarray]]:
        """As the batches of text; sends this process SIGTERM, as a scheduler does, on reading that of `stop_at`."""
        self.started_at = start_step
        return self._watched(super().train_batches(start_step, share), start_step)

    def _watched(self, batches: Iterator[dict[str, np.ndarray]], step: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            if step == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
            yield batch
            step += 1


def measure_resume(config: Config, stop_at: int, *, deterministic: bool = False) -> dict[str, Any]:
    """Trains twice to the end, the second time with a stop and a resume, and compares.

    Args:
      config: the training; all its devices take part.
      stop_at: updates before the batch whose reading stops it.
      deterministic: on a GPU, sums in the same order every time.
    """
    if deterministic:
        child.make_deterministic()
    with tempfile.TemporaryDirectory() as directory:
        whole, parts = Path(directory) / "whole", Path(directory) / "parts"
        _train(config, whole)
        stopped = _train(config, parts, stop_at=stop_at)
        resumed = _train(config, parts)
        losses, again = _losses(whole), _losses(parts)
        differing = _differing(_state(whole, config), _state(parts, config))
    return {
        "losses": losses,
        "resumed_losses": again,
        "stopped_at": stopped["steps"] if "stopped" in stopped else None,
        "resumed_at": resumed["started_at"],
        "steps": resumed["steps"],
        "val_loss": resumed["val_loss"],
        "differing_arrays": differing,
    }


def _train(config: Config, workdir: Path, stop_at: int | None = None) -> dict[str, Any]:
    """Trains in a workdir as the training command does, quietly; the summary, with started_at."""
    task = _Watched(config, make_task(config).data)
    task.stop_at = stop_at
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        summary = loop.train(config, lambda: task, workdir)
    return {**summary, "started_at": task.started_at}


def _losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(workdir / METRICS) if row["kind"] == "train"]


def _state(workdir: Path, config: Config) -> Any:
    """All arrays of the last checkpoint, with their paths."""
    spec = state_spec(make_task(config).network, config.train, loop.make_mesh(config.mesh))
    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        return jax.device_get(checkpoints.restore(config.train.steps, spec.with_shardings()))


def _differing(a: Any, b: Any) -> list[str]:
    """Names of the arrays that differ in any bit."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for (path, x), y in pairs if x.tobytes() != y.tobytes()
    ]


def experiment_of(sizes: Sizes) -> Config:
    """The training that is stopped, with dropout, whose random numbers too must go on."""
    return small_experiment(sizes, "waveresnet", dropout=0.1, log_every=1)


def check_resume(sizes: Sizes, machine: Machine) -> Findings:
    """Losses of every update and the whole final state are equal to the last bit."""
    stop_at = sizes.steps // 2
    result = child.in_child(measure_resume, experiment_of(sizes), stop_at, deterministic=machine.platform == "gpu")
    found = Findings(result)
    fall = Fall.of(result["losses"])
    found.expect(fall.share >= LEAST_FALL, f"the loss went from {fall.first:.3f} to {fall.last:.3f}")
    stopped = result["stopped_at"]
    found.expect(stopped is not None and 0 < stopped < sizes.steps, f"the run was stopped at {stopped}, not on its way")
    resumed = result["resumed_at"]
    found.expect(resumed == stopped, f"the run was stopped at {stopped}, but goes on from {resumed}")
    counts = len(result["losses"]), len(result["resumed_losses"])
    found.expect(counts == (sizes.steps, sizes.steps), f"there are {counts} losses, not {sizes.steps} of both runs")
    pairs = zip(result["losses"], result["resumed_losses"], strict=False)
    wrong = [i for i, (a, b) in enumerate(pairs, start=1) if a != b]
    found.expect(not wrong, f"the losses of updates {wrong} differ, the first of them {wrong[:1]}")
    differing = result["differing_arrays"]
    found.expect(not differing, f"{len(differing)} arrays of the final state differ: {', '.join(differing[:5])}")
    return found


RESUME = Check(
    "GPU-08",
    "save, stop, load and resume, to the last bit",
    {"differing_losses": 0, "differing_arrays": 0, "fall": LEAST_FALL},
    check_resume,
)
