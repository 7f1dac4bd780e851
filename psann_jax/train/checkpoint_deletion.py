"""Deleting checkpoints, and finding what killed or failed processes left between them."""

import contextlib
import re
import shutil
import uuid
from pathlib import Path

from psann_jax.train.checkpoint_format import STEP_PREFIX, missing_files, step_of
from psann_jax.train.checkpoint_index import INDEX

_DELETED = ".deleted-"
# Orbax writes a checkpoint under the first name, `delete` renames it to the second, `atomic_write` uses the third.
_LEFTOVER = re.compile(
    rf"{STEP_PREFIX}_\d+(\.orbax-checkpoint-tmp|{re.escape(_DELETED)}).*|{re.escape(INDEX)}\.\d+\.tmp"
)


def delete(path: Path) -> None:
    """Deletes a checkpoint; if the process is killed meanwhile, either all of it or nothing is left under its name.

    Also deletes a file or a link of that name. What cannot be deleted stays behind under another name, which
    `find_partial` returns.

    Raises:
      OSError: it cannot be renamed.
    """
    renamed = path.with_name(f"{path.name}{_DELETED}{uuid.uuid4().hex[:8]}")
    try:
        path.rename(renamed)
    except FileNotFoundError:
        return
    remove(renamed)


def remove(path: Path) -> None:
    """Deletes a directory, file or link as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def find_partial(directory: Path) -> list[Path]:
    """Returns everything in a directory of checkpoints that a save, a deletion or a copy did not complete.

    These are temporary directories, and directories or files named like a checkpoint that lack a necessary file. A
    complete but damaged checkpoint is not among them, nor is one of which that cannot be told.

    Raises:
      OSError: the directory cannot be read.
    """
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _LEFTOVER.fullmatch(path.name) or _is_partial(path))


def _is_partial(path: Path) -> bool:
    if step_of(path.name) is None:
        return False
    try:
        return bool(missing_files(path))
    except OSError:  # perhaps a temporary failure of the disk
        return False
