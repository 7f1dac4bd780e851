"""Workarounds for Orbax: time limits by the wall clock, noisy logging, storage errors of several types."""

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import tensorstore
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.experimental.v1._src.saving import execution

_CHECK = "_check_directory_consistency"


def saving_context(*, by_leader_alone: bool = False) -> ocp.Context:
    """Returns options under which a change of the system clock does not abort a save.

    Orbax's time limits use the time of day. None is needed, because the death of one process ends the others (see
    `psann_jax.train.processes`). Directories created in the background have a time limit that cannot be set.

    Args:
      by_leader_alone: process 0 of several saves host arrays, without the others.
    """
    context = ocp.Context()
    if by_leader_alone:
        context.multiprocessing.active_processes = {0}
    context.asynchronous.timeout_secs = 10 * 365 * 86400
    context.asynchronous.create_directories_asynchronously = False
    return context


@contextlib.contextmanager
def saving_alone() -> Iterator[None]:
    """Lets process 0 of several save, with `saving_context(by_leader_alone=True)`.

    Orbax compares the paths of all processes even if only some take part, and so waits for the others.
    """
    original = getattr(execution, _CHECK, None)
    if original is None:  # a version without the comparison
        yield
        return
    setattr(execution, _CHECK, lambda path: None)
    try:
        yield
    finally:
        setattr(execution, _CHECK, original)


def storage_error_reason(error: Exception) -> str | None:
    """Returns why a file could not be written, None if the error has another cause.

    TensorStore reports storage errors as ValueError.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match = re.search(r"([^:]*) \[os_error_code=", str(error))
    return match[1].strip() if match else None


def find_unreadable(path: Path, items: Collection[str]) -> str | None:
    """Returns "PART: what is wrong" for the first part of a checkpoint that cannot be read in full, None if all can.

    Unlike Orbax, this needs no other process, nor the memory for the whole checkpoint.
    """
    part = "_CHECKPOINT_METADATA"
    try:
        json.loads((path / part).read_bytes())
        for part in sorted(items):
            json.loads((path / part / "_METADATA").read_bytes())
            spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path / part}/"}}
            store = tensorstore.KvStore.open(spec).result()
            for key in store.list().result():
                store.read(key).result()
    except (OSError, ValueError) as error:
        return f"{part}: cannot be read: {storage_error_reason(error) or str(error).partition(':')[0]}"
    return None


def silence_orbax_log() -> None:
    """Drops Orbax's log messages; what matters of them is raised as an exception too."""
    logging.getLogger("absl").addFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
