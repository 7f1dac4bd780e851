"""Checksums of the files of a directory, to detect damage before the files are used.

Orbax notices a truncated file, but not every changed byte. The checksums detect accidental damage by storage, not
deliberate changes.
"""

import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from psann_jax.utils.files import atomic_write

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20


def write_checksums(directory: Path) -> None:
    """Writes sizes and checksums of all files of a directory to its checksums.json, atomically.

    Raises:
      OSError: a file cannot be read, or checksums.json cannot be written.
    """
    content = {name: {"bytes": path.stat().st_size, "crc32": _hex(path)} for name, path in _files(directory)}
    # Without fsync, a power failure could leave an empty file, and an intact checkpoint would look damaged.
    atomic_write(directory / CHECKSUMS, json.dumps(content, indent=2), fsync=True)


def find_damage(directory: Path, parts: Collection[str] | None = None) -> str | None:
    """Returns "FILE: what is wrong" for the first damaged file, None if all files are intact.

    A directory without checksums counts as intact. Either an older version wrote it, or its process was killed between
    the rename that completed the directory and the writing of the checksums. Counting it as damaged would discard good
    checkpoints because of a much rarer fault.

    Args:
      directory: to verify.
      parts: verify only the top-level files and these subdirectories; None verifies all files.
    """
    try:
        text = (directory / CHECKSUMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {_reason(error)}"
    try:
        expected = {str(name): (int(facts["bytes"]), str(facts["crc32"])) for name, facts in json.loads(text).items()}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return f"{CHECKSUMS}: is not a list of checksums"
    for name, (size, crc32) in expected.items():
        if parts is not None and "/" in name and name.partition("/")[0] not in parts:
            continue
        wrong = _compare(directory / name, size, crc32)
        if wrong:
            return f"{name}: {wrong}"
    return None


def _compare(path: Path, size: int, crc32: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        if _hex(path) != crc32:
            return "its checksum differs"
    except OSError as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not name.startswith(CHECKSUMS):
            yield name, path


def file_crc32(path: Path) -> int:
    """Returns the CRC-32 of a file's content.

    Raises:
      OSError: the file cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _hex(path: Path) -> str:
    return f"{file_crc32(path):08x}"
