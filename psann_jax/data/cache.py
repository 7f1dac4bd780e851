"""Directories that are made once and then shared by every run and process."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from psann_jax.utils.errors import UserError


def cache_root(cache_dir: str) -> Path:
    """The directory of prepared data: `cache_dir`, or psann_jax in the user's cache directory."""
    if cache_dir:
        return Path(cache_dir).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psann_jax"


def key_of(*parts: Any) -> str:
    """A short hash of JSON-like values, for the name of a cache entry."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def get_or_make(
    root: Path,
    name: str,
    make: Callable[[Path], None],
    announce: bool = True,
    find_damage: Callable[[Path], str | None] = lambda path: None,
) -> Path:
    """The directory root/name; if it is not there or damaged, `make` fills an empty one that then becomes it.

    A directory of that name is always complete: it is filled under another name and renamed. Processes that want the
    same one wait for the first.

    Args:
      root: the cache.
      name: of the entry; names everything that its content depends on.
      make: writes the content into the directory that it is given.
      announce: whether to say that another process is being waited for.
      find_damage: says what is wrong with the content of a directory that is there; None if it is as it was made.
        The process that then makes it again says so on stderr.

    Raises:
      UserError: the cache cannot be written.
    """
    final = root / name
    # A damaged entry that another process puts aside meanwhile has files missing.
    with contextlib.suppress(FileNotFoundError):
        if final.is_dir() and find_damage(final) is None:
            return final
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{name}.lock", announce):
            if final.is_dir():
                damage = find_damage(final)  # asked again: another process may have made it again meanwhile
                if damage is None:
                    return final
                print(f"{final}: damaged ({damage}); making it again", file=sys.stderr)
                _put_aside(final)
            _make(final, make)
    return final


def _put_aside(damaged: Path) -> None:
    """Makes a name free at once, whoever still reads the files; `_make` deletes what it finds under the new name."""
    damaged.rename(Path(tempfile.mkdtemp(prefix=f"{damaged.name}.tmp-", dir=damaged.parent)))


def _make(final: Path, make: Callable[[Path], None]) -> None:
    for left_by_a_kill in final.parent.glob(f"{final.name}.tmp-*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.tmp-", dir=final.parent))
    try:
        make(temporary)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        temporary.chmod(0o755)
        temporary.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path, announce: bool) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if announce:
            print(f"waiting for another process that prepares {path.with_suffix('')}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(
            f"data.cache_dir: cannot write {root}: {e.strerror or e}; make room there or choose another directory"
        ) from e
