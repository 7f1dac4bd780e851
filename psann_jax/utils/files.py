"""Atomic writes, JSON files, and storage errors that name the path."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import BucketUrl, given_location


@contextlib.contextmanager
def storage_errors(
    path: str | os.PathLike[str], action: Literal["written", "read"] = "written", hint: str = ""
) -> Iterator[None]:
    """Converts an OSError raised in the block to a UserError that names the path.

    Args:
      path: named in the message if the error itself names no file.
      action: what failed: "PATH: cannot be written: No space left on device".
      hint: what to do about it, added to the message.

    Raises:
      UserError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename or path)
        reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
        raise UserError("; ".join(filter(None, (f"{name}: cannot be {action}: {reason}", hint)))) from error


def given_path(value: Any, name: str) -> Path:
    """Returns a path on a disk that a user gave; see `given_location`.

    Raises:
      UserError: see `given_location`; or it is in a bucket.
    """
    location = given_location(value, name)
    if isinstance(location, BucketUrl):
        raise UserError(f"{name}: is {location}, must be a path on a disk of this machine")
    return location


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flushes the content of a file, or the entries of a directory, to the device.

    Raises:
      OSError: the path cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, fsync: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same directory that replaces `path` when the block ends.

    If the block raises, the temporary file is deleted and `path` is unchanged. Use it for writers that take a file
    name; `atomic_write` is for content that is in memory.

    Args:
      path: the file to create or replace.
      fsync: flush the content to the device first, so that a power failure cannot leave an empty file.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # not its id: those of containers are alike
    try:
        yield temporary
        if fsync:
            fsync_path(temporary)
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike[str], content: str | bytes, *, fsync: bool = False) -> None:
    """Writes a whole file, text as UTF-8, or leaves the old one unchanged; see `atomic_path`.

    Raises:
      OSError: the file cannot be written; wrap the call in `storage_errors` to report that to the user.
    """
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file atomically.

    Raises:
      UserError: the file cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    with storage_errors(path):
        atomic_write(path, text)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: the file cannot be read or is not a JSON object.
    """
    with storage_errors(path, "read"):
        content = Path(path).read_bytes()
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{os.fspath(path)}: is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{os.fspath(path)}: is not a JSON object")
    return parsed


def require_writable(location: Path | BucketUrl, field: str) -> None:
    """Checks, before long work, that a directory can be written, or made; a URL is not checked. Changes nothing.

    Raises:
      UserError: it cannot; the message begins with `field`.
    """
    if not isinstance(location, Path):
        return
    path = location.absolute()
    # Not Path.exists, which before Python 3.14 raises PermissionError below a directory that may not be entered.
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if not existing.is_dir():
        raise UserError(f"{field}: {existing}: is a file, must be a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{field}: {existing}: cannot be written")
