"""What Orbax does otherwise than a run needs it, put right: its deadlines, its log, its errors of storage."""

import logging
import re
from pathlib import Path

from orbax.checkpoint import v1 as ocp


def without_deadlines() -> ocp.Context:
    """Options by which Orbax does not give a save up when somebody sets the clock on.

    Its deadlines are by the time of day. None is needed, as the end of a process ends the others: see
    `psann_jax.train.processes`. Directories made in the background have a deadline that cannot be set.
    """
    context = ocp.Context()
    context.asynchronous.timeout_secs = 10 * 365 * 86400
    context.asynchronous.create_directories_asynchronously = False
    return context


def storage_reason(error: Exception) -> str | None:
    """Why the disk refused, or None if the error is another one. TensorStore reports it in a ValueError."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match = re.search(r"([^:]*) \[os_error_code=", str(error))
    return match[1].strip() if match else None


def not_from_orbax(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs: whatever matters of it is raised as an exception too."""
    return "orbax" not in Path(record.pathname).parts
