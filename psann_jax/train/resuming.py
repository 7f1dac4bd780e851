"""Where a run continues: whether it may, and the state of a stream of data, if its task has one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from psann_jax.config import Config, require
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.processes import gather_from_all
from psann_jax.train.start import GIVEN_SHA256
from psann_jax.train.task import Stream, Task
from psann_jax.train.workdir import another_run, other_names
from psann_jax.utils.errors import UserError

_STREAMS = "streams"  # in the metadata of a checkpoint: the state of each process's stream


def check_same_data(task: Task, config: Config, expected: str) -> None:
    """Checks that this process has the data of process 0, whose fingerprint is given.

    Raises:
      UserError: it has others.
    """
    if task.fingerprint() == expected:
        return
    problem, remedy = f"another content of {_names(config)}", "give all the same files"
    if task.tokenizer_bytes() is not None:
        problem += ", or another tokenizer,"
        remedy += ", and name the tokenizer in data.tokenizer.path if it was trained"
    raise UserError(f"data: this process has {problem} than process 0; {remedy}")


def _names(config: Config) -> str:
    return ", ".join((*config.data.train_names, *config.data.valid_names))


def prepare_resuming(
    saved_step: int | None,
    checkpoints: CheckpointReader,
    task: Task,
    config: Config,
    workdir: Path,
    origin: Mapping[str, str | None],
) -> Mapping[str, str | None]:
    """Checks that the run saved after `saved_step` updates can continue, and continues its stream.

    Args:
      saved_step: None for a new run.
      checkpoints: of the run.
      task: of this start.
      config: of this start.
      workdir: of the run.
      origin: of the weights that this start was given, from `psann_jax.train.start.origin_of`.

    Returns:
      The origin of the weights that the run started from; a checkpoint of an earlier version does not say it all.

    Raises:
      UserError: the config has fewer steps, the data are others, other weights were given, or a stream was read by
        another number of processes.
    """
    if saved_step is None:
        return origin
    require(
        saved_step <= config.train.steps,
        "train.steps",
        f"is {config.train.steps}, but the run in {workdir} has done {saved_step} steps",
    )
    metadata = checkpoints.metadata(saved_step)
    if metadata["data"] != task.fingerprint():
        raise _other_data(task, config, workdir)
    given = origin[GIVEN_SHA256]
    if given is not None and metadata.get(GIVEN_SHA256, given) != given:
        raise UserError(
            f"workdir: {workdir}: holds a run that started from other weights; choose another, or load that run "
            "without checkpoint or ema_params to continue it"
        )
    stream = task.stream()
    if stream is not None:
        _restore(stream, metadata)
    return {name: metadata[name] for name in origin if name in metadata}


def _other_data(task: Task, config: Config, workdir: Path) -> UserError:
    """Returns the error for data other than those that the run was trained on."""
    tokenizer = "" if task.tokenizer_bytes() is None else " or with another tokenizer"
    if differing := other_names(workdir, config):
        return another_run(workdir, differing, f", with another content{tokenizer}")
    problem = f"was trained on another content of {_names(config)}{tokenizer}"
    return UserError(f"{workdir}: {problem}; restore it, or choose another --workdir")


def _restore(stream: Stream, metadata: Mapping[str, Any]) -> None:
    states, count = metadata[_STREAMS], jax.process_count()
    if len(states) != count:
        raise UserError(
            f"data.stream: the run was saved by {len(states)} processes, and a stream continues with as many only; "
            f"this start has {count}"
        )
    stream.restore(states, jax.process_index())


class StreamState:
    """The state of a task's stream after the last update; batches that were read for the next one do not count."""

    def __init__(self, stream: Stream | None):
        """Starts with the state that the stream begins with."""
        self._stream = stream
        self.update()

    def update(self) -> None:
        """Takes the state of now."""
        self._state = None if self._stream is None else self._stream.state()

    def metadata(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; all processes must call it."""
        return {} if self._stream is None else {_STREAMS: gather_from_all(self._state)}
