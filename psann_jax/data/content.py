"""What a file contains, as a hash. It does not change when the file is copied, moved or touched."""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from psann_jax.data.files import read_errors
from psann_jax.utils.errors import UserError
from psann_jax.utils.progress_stream import progress_stream, updates_in_place

MEMORY = "file-hashes.jsonl"  # in the cache directory: hashes of files, so that a restart need not read a terabyte
_BLOCK = 1 << 20
_SHOWN_AFTER = 2  # seconds of hashing without a progress bar
# A file that changes twice within the resolution of its times has the same times. Such a file is not remembered.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes:
      sha256: of all bytes.
      size: in bytes.
      mtime_ns: when the file was last changed; with the size, it tells whether the file has changed since.
    """

    sha256: str
    size: int
    mtime_ns: int


def file_contents(paths: Sequence[Path], root: Path, progress: bool = False) -> list[Content]:
    """Returns the contents of files; reads only those that are new or changed since an earlier call.

    Args:
      paths: the files.
      root: the cache directory, whose file `MEMORY` remembers the hashes by path, size, times and inode. If it is
        missing, damaged or cannot be written, files are read again.
      progress: show a progress bar if this takes more than two seconds.

    Raises:
      UserError: a file cannot be read, or changes while it is read.
    """
    known, found, new = _recall(root), [], []
    with tqdm(
        desc="hashing",
        total=sum(path.stat().st_size for path in paths if path.exists()),
        disable=not progress,
        unit="B",
        unit_scale=True,
        delay=_SHOWN_AFTER,
        file=progress_stream(),
        mininterval=0.1 if updates_in_place(progress_stream()) else 30,
    ) as bar:
        for path in paths:
            with read_errors(path), open(path, "rb") as file:
                key = _key(path, os.fstat(file.fileno()))
                sha256 = known.get(key)
                if sha256 is None:
                    sha256 = _sha256(file, bar.update)
                    if _key(path, os.fstat(file.fileno())) != key:
                        raise UserError(f"{path}: changed while it was read; start again")
                    new.append((key, sha256))
                else:
                    bar.update(key[1])
                found.append(Content(sha256, key[1], key[2]))
    _remember(root, new)
    return found


_Key = tuple[str, int, int, int, int]


def _key(path: Path, stat: os.stat_result) -> _Key:
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _sha256(file: BinaryIO, report: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
        report(len(block))
    return digest.hexdigest()


def _recall(root: Path) -> dict[_Key, str]:
    """Returns what `_remember` wrote, without damaged lines."""
    known = {}
    with contextlib.suppress(OSError), open(root / MEMORY, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                *key, sha256, checksum = json.loads(line)
                if checksum == _checksum([*key, sha256]):
                    known[tuple(key)] = sha256
    return known


def _remember(root: Path, new: Iterable[tuple[_Key, str]]) -> None:
    """Appends lines [path, size, mtime_ns, ctime_ns, inode, sha256, checksum], all in one write.

    Lines of processes that write at the same time can only mix on network file systems, and then fail their checksums.
    """
    latest = time.time_ns() - _SETTLED_NS
    entries = [[*key, sha256] for key, sha256 in new if max(key[2], key[3]) < latest]
    if not entries:
        return
    text = "".join(json.dumps([*entry, _checksum(entry)]) + "\n" for entry in entries)
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        with open(root / MEMORY, "ab", buffering=0) as file:
            file.write(b"\n" + text.encode())  # the last write may have ended within a line


def _checksum(entry: list[Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())
