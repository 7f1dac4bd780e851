"""Training from a config: chooses the task, trains it and draws the loss curve."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax

from psann_jax.config import Config, DataConfig
from psann_jax.config.families import family
from psann_jax.data.cache import cache_root
from psann_jax.data.earlier_text import is_of_earlier_version, load_earlier_text
from psann_jax.data.loader import TextData
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Params
from psann_jax.plots.loss_curve import plot_loss_curve
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.loop import train
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.mirror import local_workdir
from psann_jax.train.task import Task
from psann_jax.train.workdir import CHECKPOINTS
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors
from psann_jax.utils.locations import BucketUrl

LOSS_CURVE = "loss_curve.png"
# Between pictures of a run in progress: at least so many seconds, and so many times what drawing took.
_MIN_SECONDS, _COST_FACTOR = 20.0, 50


def train_run(
    config: Config, workdir: Path | BucketUrl, *, initial_params: Params | None = None, profile_steps: str = ""
) -> dict[str, Any]:
    """Trains the experiment of a config in a workdir and draws its loss curve, also when a signal ended it early.

    The loss curve is updated during training too. The workdir may be in a bucket, see `psann_jax.train.mirror`; the
    other arguments, the result and the errors are those of `psann_jax.train.loop.train`.
    """
    with local_workdir(workdir, cache_root(config.data.cache_dir)) as local:
        return _train(config, local, initial_params, profile_steps)


def _train(config: Config, workdir: Path, initial_params: Params | None, profile_steps: str) -> dict[str, Any]:
    curve = _LossCurve(workdir)

    def make_task() -> Task:
        earlier = _earlier_text(config, workdir)
        kind = family(config.model.base).get("task")
        curve.task = kind.load(config) if earlier is None else kind(config, earlier)
        return curve.task

    summary = train(
        config,
        make_task,
        workdir,
        initial_params=initial_params,
        profile_steps=profile_steps,
        on_results=curve.update,
    )
    if jax.process_index() == 0:
        with storage_errors(workdir / LOSS_CURVE):
            curve.draw()
    return summary


def _earlier_text(config: Config, workdir: Path) -> TextData | None:
    """Returns the text of the run in a workdir if an earlier version prepared it, in the format of that version."""
    if not isinstance(config.data, DataConfig):
        return None
    checkpoints = CheckpointReader(workdir / CHECKPOINTS)
    for step in reversed(checkpoints.steps()):
        with contextlib.suppress(UserError):  # a damaged checkpoint; the loop reports it
            fingerprint = checkpoints.metadata(step)["data"]
            if not is_of_earlier_version(fingerprint):
                return None
            tokenizer = Tokenizer.from_bytes(checkpoints.tokenizer(step))
            break
    else:
        return None
    return load_earlier_text(config.data, fingerprint, tokenizer, jax.process_index() == 0)


class _LossCurve:
    """The picture of a run; `task` must be set before it is drawn."""

    def __init__(self, workdir: Path):
        self.task: Task | None = None
        self._workdir = workdir
        self._next = time.monotonic() + _MIN_SECONDS

    def update(self) -> None:
        """Draws the curve if the last time was long enough ago; training goes on if that fails."""
        began = time.monotonic()
        if began < self._next:
            return
        with contextlib.suppress(Exception):  # the end of the run draws it again, and reports errors
            self.draw()
        now = time.monotonic()
        self._next = now + max(_MIN_SECONDS, _COST_FACTOR * (now - began))

    def draw(self) -> None:
        """Draws the curve of all steps so far.

        Raises:
          UserError: metrics.jsonl is damaged.
          OSError: the picture cannot be written.
        """
        assert self.task is not None
        rows = read_metrics(self._workdir / METRICS)
        last = max((row["step"] for row in rows), default=0)
        phases = {step: name for step, name in self.task.phases().items() if step < last}
        plot_loss_curve(rows, self._workdir / LOSS_CURVE, self._workdir.name, phases, self.task.TARGET)
