"""The workdir of a run: its lock, config.json and summary.json."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax

from psann_jax.config import Config, DataConfig
from psann_jax.config.io import default_config, flatten, to_dict, upgrade_saved
from psann_jax.train.checkpoint_format import step_of
from psann_jax.train.metrics import METRICS, current_name
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, storage_errors, write_json

CONFIG, SUMMARY, CHECKPOINTS, PRIVATE, _LOCK = "config.json", "summary.json", "checkpoints", ".private", ".lock"
INITIAL_WEIGHTS = "initial_weights.json"  # where those of a run with train.init_from come from

# Settings that may change when a run resumes: they decide how long, how often and on what it trains, not the result.
FREE = (
    "train.steps",
    "train.grad_accum",
    "train.remat",
    "train.scan_layers",
    "train.log_every",
    "train.loggers",
    "train.max_bad_steps",
    "model.attention",
    "model.kernels",
    "data.cache_dir",
    "data.num_workers",
    "eval.",
    "checkpoint.",
    "mesh.",
)
# These too, because a checkpoint knows the content of the files.
KNOWN_BY_CONTENT = ("data.sources", "data.valid_sources", "data.files", "data.valid_files")


@contextlib.contextmanager
def lock(workdir: Path, config: Config) -> Iterator[None]:
    """Locks the workdir while the context lasts, so that only one process at a time trains in it.

    The workdir is created if missing. The system releases the lock when the process ends, however it ends.

    Raises:
      UserError: the workdir cannot be written, another process is training in it, or it holds another run.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        with storage_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(filelock.FileLock(workdir / _LOCK).acquire(timeout=0))
            except filelock.Timeout as error:
                raise UserError(f"{workdir}: another process is training in this workdir") from error
        _check_same_run(workdir, config)
        yield


def make_private(workdir: Path) -> None:
    """Marks a workdir as a copy that belongs to one process of a run; the others have copies of their own."""
    (workdir / PRIVATE).touch()


def is_private(workdir: Path) -> bool:
    """Returns whether `make_private` marked the workdir."""
    return (workdir / PRIVATE).exists()


def is_locked(workdir: Path) -> bool:
    """Returns whether a process is training in a workdir.

    Raises:
      UserError: the lock cannot be opened.
    """
    if not (workdir / _LOCK).exists():
        return False
    with storage_errors(workdir):
        try:
            with filelock.FileLock(workdir / _LOCK).acquire(timeout=0):
                return False
        except filelock.Timeout:
            return True


def write_config(workdir: Path, config: Config) -> None:
    """Writes config.json, in one process. Once there are metrics or a checkpoint too, other runs are refused.

    Call it only when nothing is left that could refuse the config: a start that fails must not claim the workdir.

    Raises:
      UserError: the file cannot be written.
    """
    if jax.process_index() == 0:
        write_json(workdir / CONFIG, to_dict(config))


def _results(workdir: Path) -> list[str]:
    """Returns the names of the files of a run that are worth protecting."""
    metrics, checkpoints = workdir / METRICS, workdir / CHECKPOINTS
    with storage_errors(workdir, "read"):
        has_rows = metrics.exists() and metrics.stat().st_size > 0
        has_steps = checkpoints.is_dir() and any(step_of(path.name) is not None for path in checkpoints.iterdir())
    return [name for name, found in ((CHECKPOINTS, has_steps), (METRICS, has_rows)) if found]


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns config.json with the current names of all settings, whichever version wrote it.

    Raises:
      UserError: the file is missing or damaged.
    """
    return upgrade_saved(read_json(workdir / CONFIG))


def read_summary(workdir: Path) -> dict[str, Any]:
    """Returns summary.json with the current names of all metrics; {} if the run is not complete.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / SUMMARY
    return {current_name(name): value for name, value in read_json(path).items()} if path.exists() else {}


def _check_same_run(workdir: Path, config: Config) -> None:
    results = _results(workdir)
    if not results:  # at most the config.json of a start that failed
        return
    if not (workdir / CONFIG).exists():
        raise UserError(f"{workdir}: holds {results[0]} but no {CONFIG}; choose another --workdir")
    # Without a checkpoint nothing would notice that the content is another. A stream is known by its names.
    is_known = CHECKPOINTS in results and not (isinstance(config.data, DataConfig) and config.data.stream)
    free = (*FREE, *KNOWN_BY_CONTENT) if is_known else FREE
    differing = [line for name, line in _differing(workdir, config).items() if not name.startswith(free)]
    if differing:
        raise another_run(workdir, differing)


def _differing(workdir: Path, config: Config) -> dict[str, str]:
    """Returns a line about each setting that differs from config.json, by its dotted name."""
    # A setting that is younger than the run had its default's effect.
    defaults = dict(flatten(default_config(config.model.base).to_dict()))
    saved, given = defaults | dict(flatten(read_config(workdir))), dict(flatten(to_dict(config)))
    differing = [name for name in sorted(saved | given) if saved.get(name) != given.get(name)]
    return {name: f"{name} is {saved.get(name)!r} there and {given.get(name)!r} here" for name in differing}


def other_names(workdir: Path, config: Config) -> list[str]:
    """Returns a line about each setting of `KNOWN_BY_CONTENT` that differs from config.json.

    Raises:
      UserError: config.json is missing or damaged.
    """
    return [line for name, line in _differing(workdir, config).items() if name in KNOWN_BY_CONTENT]


def another_run(workdir: Path, differing: Sequence[str], note: str = "") -> UserError:
    """Returns the error for a workdir that holds another run.

    Args:
      workdir: of the run.
      differing: a line about each setting that tells it from this one.
      note: what follows them.
    """
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    return UserError(f"{workdir}: holds another run: {'; '.join(differing[:3])}{more}{note}; choose another --workdir")
