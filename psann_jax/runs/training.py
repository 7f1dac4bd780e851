"""Training from a config: chooses the task, trains it and draws the loss curve."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from psann_jax.config import Config, ConfigError, DataConfig, text_data
from psann_jax.config.families import family
from psann_jax.data.cache import cache_root
from psann_jax.data.corpus import Corpus
from psann_jax.data.earlier_text import is_of_earlier_version, load_earlier_text
from psann_jax.data.loader import TextData
from psann_jax.data.preparation import text_fingerprint
from psann_jax.data.streamed_text import StreamedText, open_text
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.models.network import Network, Params
from psann_jax.plots.loss_curve import plot_loss_curve
from psann_jax.train.callbacks import Callbacks
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.common_end import end_together
from psann_jax.train.loop import train
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.mirror import local_workdir
from psann_jax.train.processes import raise_together
from psann_jax.train.start import Start, StartingWeights
from psann_jax.train.task import Task
from psann_jax.train.workdir import CHECKPOINTS, another_run, other_names
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors
from psann_jax.utils.locations import BucketUrl, given_location

LOSS_CURVE = "loss_curve.png"
_Saved = tuple[str, Tokenizer]  # the data fingerprint and the tokenizer in a checkpoint
# Between pictures of a run in progress: at least so many seconds, and so many times what drawing took.
_MIN_SECONDS, _COST_FACTOR = 20.0, 50


def train_run(
    config: Config,
    workdir: Path | BucketUrl,
    *,
    initial_params: Params | None = None,
    open_start: Callable[[Config], Start] | None = None,
    profile_steps: str = "",
    callbacks: Callbacks | None = None,
) -> dict[str, Any]:
    """Trains the experiment of a config in a workdir and draws its loss curve, also when a signal ended it early.

    The loss curve is updated during training too. Other arguments, result and errors are those of
    `psann_jax.train.loop.train`.

    Args:
      config: the experiment.
      workdir: directory for all files of the run; in a bucket, see `psann_jax.train.mirror`.
      initial_params: parameters to start from, if the config has no `train.init_from`.
      open_start: opens what `train.init_from` names; called if the config has it and the run does not resume.
      profile_steps: steps to trace.
      callbacks: called by process 0.
    """
    with end_together(), local_workdir(workdir, cache_root(config.data.cache_dir)) as local:
        start = _make_start(config, local, initial_params, open_start)
        return _train(
            config,
            local,
            start,
            initial_params=initial_params if start is None else start.read,
            profile_steps=profile_steps,
            callbacks=callbacks,
        )


def _train(config: Config, workdir: Path, start: "_Start | None", **options: Any) -> dict[str, Any]:
    """Trains in a workdir on a local disk; `options` are passed to `psann_jax.train.loop.train`."""
    curve = _LossCurve(workdir)

    def make_task() -> Task:
        saved = _saved_text(config, workdir)
        earlier = _earlier_text(config, workdir, saved)
        if earlier is None:
            _check_names(config, workdir, saved)
        kind = family(config.model.base).get("task")
        tokenizer = _saved_tokenizer(config, workdir, saved) if start is None else start.tokenizer(saved)
        text: TextData | StreamedText | None = earlier
        if earlier is None and tokenizer is not None:
            text = open_text(text_data(config), progress=jax.process_index() == 0, tokenizer=tokenizer)
        curve.task = kind.load(config) if text is None else kind(config, text)
        return curve.task

    summary = train(config, make_task, workdir, on_results=curve.update, **options)
    if jax.process_index() == 0:
        with storage_errors(workdir / LOSS_CURVE):
            curve.draw()
    return summary


def _saved_tokenizer(config: Config, workdir: Path, saved: _Saved | None) -> Tokenizer | None:
    """Returns the tokenizer of the run in a workdir; None for a new run, and if the config names a file.

    Training it again may give another one: a stream may have changed, versions draw samples of a text in different
    ways, and the training of unigram is not reproducible.

    Raises:
      UserError: no tokenizer of this version encodes a text as the run's did.
    """
    if saved is None or is_of_earlier_version(saved[0]):
        return None
    if saved[1].had_dropout:
        raise UserError(
            f"{workdir}: the run's tokenizer has dropout, which this version switches off, so that the run cannot be "
            "resumed; choose another --workdir"
        )
    return None if text_data(config).tokenizer.path else saved[1]


def _earlier_text(config: Config, workdir: Path, saved: _Saved | None) -> TextData | None:
    """Returns the text of the run in a workdir if an earlier version prepared it, in the format of that version.

    Raises:
      UserError: the config names other files, or the text cannot be used.
    """
    if saved is None or not is_of_earlier_version(saved[0]):
        return None
    if differing := other_names(workdir, config):  # opened by the fingerprint, whatever the files contain
        raise another_run(workdir, differing)
    return load_earlier_text(text_data(config), *saved, jax.process_index() == 0)


def _check_names(config: Config, workdir: Path, saved: _Saved | None) -> None:
    """Checks prepared text of other names than those that the run started with, before hours of tokenising it.

    Raises:
      UserError: it is another text.
    """
    if saved is None or text_data(config).stream or not (differing := other_names(workdir, config)):
        return
    fingerprint, tokenizer = saved
    if text_fingerprint(Corpus(text_data(config), jax.process_index() == 0), tokenizer) != fingerprint:
        raise another_run(workdir, differing, ", with another content")


def _saved_text(config: Config, workdir: Path) -> _Saved | None:
    """Returns what the newest readable checkpoint has of the text; None if there is none, or no text."""
    if not isinstance(config.data, DataConfig):
        return None
    checkpoints = CheckpointReader(workdir / CHECKPOINTS)
    for step in reversed(checkpoints.steps()):
        with contextlib.suppress(UserError):  # a damaged checkpoint; the loop reports it
            return checkpoints.metadata(step)["data"], Tokenizer.from_bytes(checkpoints.tokenizer(step))
    return None


def _make_start(
    config: Config, workdir: Path, params: Params | None, open_start: Callable[[Config], Start] | None
) -> "_Start | None":
    """Returns where the weights of a run with `train.init_from` come from; None without that setting."""
    if not config.train.init_from:
        return None
    if open_start is None or params is not None:
        raise ConfigError("train.init_from: has no effect here, where the caller gives the weights; leave it empty")
    if jax.process_count() > 1 and not CheckpointReader(workdir / CHECKPOINTS).steps():
        with raise_together():  # reading a run is collective, so a process that lacks it would block the others
            _check_visible(config.train.init_from)
    return _Start(config, workdir, open_start)


def _check_visible(init_from: str) -> None:
    """Raises UserError if this host lacks what `train.init_from` names; one in a bucket is visible to all."""
    location = given_location(init_from, "train.init_from")
    if isinstance(location, Path) and not Path(str(location).removeprefix("hf:")).expanduser().exists():
        raise UserError(f"train.init_from: {location}: is not on this host; use a disk that all share, or a bucket")


class _Start:
    """The weights of a run with `train.init_from`: what that names or, if the run resumes, only its own checkpoint."""

    def __init__(self, config: Config, workdir: Path, open_start: Callable[[Config], Start]):
        self._config, self._workdir, self._open = config, workdir, open_start
        self._opened: Start | None = None

    def tokenizer(self, saved: _Saved | None) -> Tokenizer | None:
        """Returns the tokenizer to use instead of one of the config, if any; opens the weights unless the run resumes.

        Raises:
          UserError: the weights cannot be used.
        """
        if not CheckpointReader(self._workdir / CHECKPOINTS).steps():
            self._opened = self._open(self._config)
            return self._opened.tokenizer
        return _saved_tokenizer(self._config, self._workdir, saved)

    def read(self, network: Network, mesh: Mesh) -> StartingWeights:
        """Returns the weights; call `tokenizer` first."""
        opened, self._opened = self._opened, None  # frees the arrays of a file
        assert opened is not None
        return opened.weights(network, mesh, self._config.seed)


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
