"""How the program runs a command, and how it ends: with one line for every error, and a code.

| end | standard error | code |
|---|---|---|
| an error that the user can mend (`UserError`) | one line | 2 |
| any other error | one line that names a file with the traceback | 1 |
| Ctrl-C | "interrupted" | 130 |
| the reader of the output, such as head, has closed it | nothing | 1 |

With PSANN_JAX_TRACEBACK=1 in the environment, errors also show their traceback.
"""

import contextlib
import errno
import io
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from psann_jax.cli.commands import dispatch
from psann_jax.cli.flags import default_workdir
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.restart import restart_tuned

TRACEBACK = "PSANN_JAX_TRACEBACK"


def run_program(argv: Sequence[str]) -> None:
    """Runs the command that the arguments name, in a fast environment (`psann_jax.utils.restart`), and exits.

    Raises:
      SystemExit: always, with the code.
    """
    _open_streams()
    # Orbax raises one of the errors of its parallel reads; asyncio would log the others when they are deleted.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    restart_tuned()
    sys.unraisablehook = _report_unraisable
    code = exit_code(argv)
    for stream in (sys.stdout, sys.stderr):
        code = _flush(stream) or code
    _end_unfinished_loggers(code)
    raise SystemExit(code)


def _end_unfinished_loggers(code: int) -> None:
    """Exits now if a logger of a run has not finished in its time: its library may wait for it, without an end."""
    loggers = sys.modules.get("psann_jax.train.loggers")  # imported by a run only, as it loads JAX
    if loggers is None or not loggers.are_unfinished():
        return
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # or the other processes of the run fail
    os._exit(code)


def exit_code(argv: Sequence[str]) -> int:
    """Runs a command; prints what an exception that ends it says in one line, and returns the exit code."""
    try:
        _check_installed()
        dispatch(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            traceback.print_exc()
        if isinstance(error, UserError):
            return _end(f"error: {error}", 2)
        problem = _system_limit(error) or _missing_platform(error)
        return _end(f"error: {problem}", 2) if problem else _end(f"error: {_unforeseen(error, argv)}", 1)
    return 0


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends SIGINT again if Python discarded a KeyboardInterrupt, as in JAX's callback of the garbage collector."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    # Now the exception would be raised in this function and be discarded too. The timer's thread sends the signal to
    # the process, so that it also ends a system call of the main thread.
    again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _check_installed() -> None:
    """Raises UserError if Python found only the folder: the first checkpoint would fail, as it records the version."""
    try:
        version("psann_jax")
    except PackageNotFoundError as error:
        folder = Path(__file__).parents[2]
        raise UserError(f"psann_jax: is not installed, only found in {folder}; pip install -e {folder}") from error


def _end(line: str, code: int) -> int:
    with contextlib.suppress(OSError):  # standard error is closed or full
        print(" ".join(line.splitlines()), file=sys.stderr)
    return code


def _unforeseen(error: Exception, argv: Sequence[str]) -> str:
    """Writes the traceback of an error to a file; returns the line about both."""
    what = f"unexpected {type(error).__name__}: {one_line(error)}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("psann_jax", "jax"))
    report = f"psann-jax {' '.join(argv)}\n{versions}\n\n{''.join(traceback.format_exception(error))}"
    name = f"traceback_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.txt"
    for directory in (_workdir(argv), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, ValueError):
            if directory is not None and directory.is_dir():
                (directory / name).write_text(report, errors="backslashreplace")
                return f"{what}; traceback: {directory / name}"
    return f"{what}; with {TRACEBACK}=1 in the environment, the command shows the traceback"


def _workdir(argv: Sequence[str]) -> Path | None:
    """The workdir of a command line, if it has one, which may not exist."""
    flags = dict(argument.partition("=")[::2] for argument in argv)
    flags |= {flag: value for flag, value in itertools.pairwise(argv) if flag in ("--workdir", "--config")}
    if flags.get("--workdir"):
        return Path(flags["--workdir"])
    return default_workdir(flags["--config"]) if argv[0] in ("train", "sweep") and flags.get("--config") else None


def _system_limit(error: Exception) -> str:
    """What to say if a device is full, a file's name is too long or a path is forbidden; "" for any other error."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not isinstance(error, OSError) or error.errno not in (*full, errno.ENAMETOOLONG, errno.EACCES):
        return ""
    if error.errno == errno.EACCES and error.filename is None:  # not of a path, such as that of a port
        return ""
    name = os.fsdecode(error.filename or "the output")
    short = name if len(name) < 200 else f"{name[:100]}..."
    return f"{short}: cannot be {'written' if error.errno in full else 'used'}: {error.strerror}"


def _missing_platform(error: Exception) -> str:
    """What to say if JAX found no device of the platforms in JAX_PLATFORMS; "" for any other error."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    frames = traceback.extract_tb(error.__traceback__)
    if not asked or not frames or Path(frames[-1].filename).name != "xla_bridge.py":
        return ""
    import jax

    jax.config.update("jax_platforms", "")
    try:
        found = sorted({"cpu", jax.default_backend()})
    except Exception:  # the platform that JAX chooses itself does not start either
        found = ["cpu"]
    return f"JAX_PLATFORMS: is {asked!r}, but this machine has {' and '.join(found)}; change it or unset it"


# --- standard streams -----------------------------------------------------------------------------------


def _open_streams() -> None:
    """Makes the standard streams take any text, and replaces closed ones, whose numbers files would otherwise get."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  it lasts as long as the program
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush(stream: TextIO) -> int:
    """Writes out a stream; returns the exit code if that fails, and discards the rest then."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            return 1
        return _end(f"error: {stream.name}: cannot be written: {error.strerror}", 2)
    return 0
