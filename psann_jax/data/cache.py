"""The cache of prepared data: directories that are built once and shared by all runs and processes."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import fsync_path, given_path, storage_errors

STORAGE_HINT = "free some space or set data.cache_dir to another directory"


def cache_root(cache_dir: str) -> Path:
    r"""Returns the directory of prepared data: `cache_dir`, or a directory in the user's cache if that is "".

    The default is ``$XDG_CACHE_HOME/psann_jax`` or ``~/.cache/psann_jax`` on Linux, ``~/Library/Caches/psann_jax`` on
    macOS and ``%LOCALAPPDATA%\psann_jax\Cache`` on Windows.

    Raises:
      UserError: there is no home directory.
    """
    if cache_dir:
        return given_path(cache_dir, "data.cache_dir").absolute()
    try:
        default = platformdirs.user_cache_path("psann_jax", appauthor=False)
    except (RuntimeError, KeyError):  # neither HOME nor an entry for the user
        default = Path("~")
    if not default.is_absolute():
        raise UserError("data.cache_dir: there is no home directory for the default cache; set it to a directory")
    return default


def key_of(*parts: Any) -> str:
    """Returns a hash of JSON-like values, 20 hexadecimal digits, for the name of a cache entry."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def get_or_make(
    root: Path,
    name: str,
    make: Callable[[Path], None],
    announce: bool = True,
    find_damage: Callable[[Path], str | None] = lambda path: None,
) -> Path:
    """Returns the directory root/name; if it is missing or damaged, builds it first.

    A directory of that name is always complete, because it is filled under a temporary name and then renamed. If
    several processes need the same entry, one builds it and the others wait.

    Args:
      root: the cache directory.
      name: the entry; it must identify everything that the content depends on.
      make: writes the content into the empty directory that it is given.
      announce: print a message to stderr before waiting for another process.
      find_damage: returns what is wrong with the content of an existing directory, or None if it is intact. A damaged
        entry is reported on stderr and rebuilt.

    Raises:
      UserError: the cache cannot be written.
    """
    final = root / name
    # Another process may move a damaged entry aside during the check; its files are missing then.
    with storage_errors(root, hint=STORAGE_HINT), contextlib.suppress(FileNotFoundError):
        if final.is_dir() and find_damage(final) is None:
            return final
    with storage_errors(root, hint=STORAGE_HINT):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{name}.lock", announce):
            if final.is_dir():
                damage = find_damage(final)  # checked again: another process may have rebuilt it
                if damage is None:
                    return final
                print(f"{final}: damaged ({damage}); rebuilding it", file=sys.stderr)
                _move_aside(final)
            _make(final, make)
    return final


def _move_aside(damaged: Path) -> None:
    """Frees the name without disturbing processes that still read the files; `_make` deletes the moved directory."""
    damaged.rename(Path(tempfile.mkdtemp(prefix=f"{damaged.name}.tmp-", dir=damaged.parent)))


def _make(final: Path, make: Callable[[Path], None]) -> None:
    for leftover in final.parent.glob(f"{final.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{final.name}.tmp-", dir=final.parent))
    try:
        make(temporary)
        for path in (*temporary.iterdir(), temporary):
            fsync_path(path)
        temporary.chmod(0o755)
        temporary.rename(final)
        fsync_path(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: Path, announce: bool) -> Iterator[None]:
    """Holds the lock of a cache entry, a file NAME.lock, while the context lasts; waits for it if necessary.

    Args:
      path: of the lock file.
      announce: print a message to stderr before waiting for another process.

    Raises:
      OSError: the lock file cannot be created.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if announce:
            print(f"waiting for another process that is building {path.with_suffix('')}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
