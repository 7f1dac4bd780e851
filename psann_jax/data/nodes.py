"""Prepares pieces on the nodes of a Ray cluster, which see the files and the cache directory under the same paths."""

import dataclasses
import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path

from psann_jax.config import DataConfig
from psann_jax.data.cache import STORAGE_HINT, cache_root
from psann_jax.data.piece_task import PieceTask, prepare_piece
from psann_jax.data.preparation import Run
from psann_jax.data.prepare_progress import PrepareProgress
from psann_jax.engines.cluster import RayEngine, Wording
from psann_jax.engines.engine import Engine, NoWatch
from psann_jax.engines.place import STOPPED, Place
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import storage_errors

# Beside the shard files while they are written: a tokenizer may have 10 MB, too much to be a part of every task.
_TOKENIZER = "tokenizer.tmp"
_WORDING = Wording("data.cache_dir", "piece", "all nodes to stop")


def run_on_nodes(config: DataConfig, address: str | None, cpus: int) -> Run:
    """Joins a Ray cluster and returns a function that does tasks there, as many at once as it has room for.

    A piece whose node dies is done again on another.

    Args:
      config: the `data` section.
      address: HOST:PORT of the cluster; None: see `RayEngine`.
      cpus: cores of a task.

    Raises:
      UserError: a source is not files, Ray is not installed, or no cluster can be used.
    """
    for spec in (*config.sources, *config.valid_sources):
        # A node's own copy or version of it could differ, and only files have a stamp that a task compares.
        if spec.startswith(("builtin:", "tfds:", "hf:")):
            hint = "name its .parquet files" if spec.startswith("hf:") else "it has to be in files"
            raise UserError(f"--engine: must be local with {spec}, of which each node has its own copy; or {hint}")
    require_extra("--engine=ray", "ray")
    engine = RayEngine(cache_root(config.cache_dir), address, cpus, gpus=0, wording=_WORDING)
    engine.connect()
    return functools.partial(_run, lambda folder: dataclasses.replace(engine, folder=folder))


def _run(engine_in: Callable[[Path], Engine], tasks: list[PieceTask], progress: PrepareProgress) -> None:
    """Does tasks with the engine whose jobs share a folder."""
    if not tasks:
        return
    directory = tasks[0].directory
    tokenizer = directory / _TOKENIZER
    tokenizer.write_bytes(tasks[0].tokenizer)
    try:
        jobs = {
            task.number: functools.partial(_prepare, dataclasses.replace(task, tokenizer=b""), tokenizer)
            for task in tasks
        }
        engine_in(directory).run(jobs, _Watch(tasks, progress))
    finally:
        tokenizer.unlink(missing_ok=True)


class _Watch(NoWatch):
    """Adds finished pieces to the progress, and ends the others after an error."""

    def __init__(self, tasks: list[PieceTask], progress: PrepareProgress) -> None:
        self._tasks = {task.number: task for task in tasks}
        self._n_written = {task.number: len(task.written()) for task in tasks}
        self._progress = progress

    def ended(self, number: int, error: str | None) -> None:
        """See `Watch`."""
        if error is not None:
            raise UserError(f"piece {number}: {error}")
        for part, header in enumerate(self._tasks[number].written()):
            n_tokens = header.train.tokens + header.valid.tokens if part >= self._n_written[number] else 0
            self._progress.add(header.train.text_bytes + header.valid.text_bytes, n_tokens)


# --- on a node ------------------------------------------------------------------------------------------


class _StoppedError(Exception):
    """Ends a piece between two batches; the files that are written stay."""


def _prepare(task: PieceTask, tokenizer: Path, place: Place) -> str | None:
    """Prepares a piece; returns an error that names the node."""
    os.environ.update(place.environment)  # this process does the work itself

    def report(n_bytes: int, n_tokens: int) -> None:
        if place.stopping():
            raise _StoppedError

    try:
        with storage_errors(tokenizer, "read"):
            task = dataclasses.replace(task, tokenizer=tokenizer.read_bytes())
        with storage_errors(task.directory, hint=STORAGE_HINT):
            prepare_piece(task, report)
    except _StoppedError:
        return STOPPED
    except UserError as error:
        return f"on {socket.gethostname()}: {error}"
    return None
