"""Training from a config: chooses the task, trains it and draws the loss curve."""

from pathlib import Path
from typing import Any

import jax

from psann_jax.config import Config
from psann_jax.config.families import family
from psann_jax.models.network import Params
from psann_jax.plots.loss_curve import plot_loss_curve
from psann_jax.train.loop import train
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.task import Task
from psann_jax.utils.files import storage_errors

LOSS_CURVE = "loss_curve.png"


def train_run(
    config: Config, workdir: Path, *, initial_params: Params | None = None, profile_steps: str = ""
) -> dict[str, Any]:
    """Trains the experiment of a config in a workdir and draws its loss curve, also when a signal ended it early.

    Arguments, result and errors are those of `psann_jax.train.loop.train`.
    """
    made: list[Task] = []

    def make_task() -> Task:
        made.append(family(config.model.base).get("task").load(config))
        return made[0]

    summary = train(config, make_task, workdir, initial_params=initial_params, profile_steps=profile_steps)
    if jax.process_index() == 0:
        _draw_loss_curve(made[0], workdir, steps=summary["steps"])
    return summary


def _draw_loss_curve(task: Task, workdir: Path, steps: int) -> None:
    path = workdir / LOSS_CURVE
    phases = {step: name for step, name in task.phases().items() if step < steps}
    with storage_errors(path):
        plot_loss_curve(read_metrics(workdir / METRICS), path, workdir.name, phases)
