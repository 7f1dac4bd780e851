"""Paths that a process may not use, also if it is root's."""

import contextlib
import os

_NOBODY = 65534


@contextlib.contextmanager
def forbidden(folder):
    """Yields a path below a new folder that this process may not enter while the context lasts."""
    folder.mkdir()
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:  # whom no permissions stop
        os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield folder / "run"
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        folder.chmod(0o700)
