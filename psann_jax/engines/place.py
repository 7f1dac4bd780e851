"""The part of a machine on which a job runs its child processes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from psann_jax.utils.progress_stream import progress_stream

LOG = "log.txt"
STOPPED = "was stopped before its end"
_POLL_S = 0.2


@dataclass(frozen=True)
class Place:
    """Where a job runs, and what its child processes get.

    Attributes:
      stopping: returns whether the job is to save its state and end.
      killing: returns whether it is to end without saving.
      shows_output: the output of child processes goes to this process's, instead of to log files.
      shares: other jobs use the same cores or GPU at the same time, or may do so.
      cores: numbers of the CPU cores; (): all.
      environment: variables that child processes have besides those of this process.
    """

    stopping: Callable[[], bool] = lambda: False
    killing: Callable[[], bool] = lambda: False
    shows_output: bool = True
    shares: bool = False
    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def run_module(self, arguments: Sequence[str], folder: Path) -> str | None:
        """Runs `python -m ARGUMENTS`, which gets SIGTERM when the job is to end, or when this process ends.

        Args:
          arguments: module and arguments.
          folder: of the run; output that is not shown is appended to its log.txt.

        Returns:
          The last line of its standard error if it fails, the signal that ended it, or `STOPPED` if it was not started;
          else None.

        Raises:
          OSError: log.txt cannot be written.
        """
        if self.stopping():
            return STOPPED
        with contextlib.ExitStack() as stack:
            log = None
            if not self.shows_output:
                folder.mkdir(parents=True, exist_ok=True)
                log = stack.enter_context((folder / LOG).open("a", encoding="utf-8"))
                print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(arguments)}", file=log, flush=True)
            process = self._start(arguments, log)
            stack.callback(process.kill)  # has no effect on one that has ended
            last = _LastLine(process, log or progress_stream())
            self._wait(process)
            line = last.get()
        return _failure(process.returncode, line, is_asked=self.killing() or self.stopping())

    def _start(self, arguments: Sequence[str], log: TextIO | None) -> "subprocess.Popen[str]":
        attached = [sys.executable, "-m", "psann_jax.engines.attached", str(os.getpid())]
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)  # of this thread; child processes inherit it
        return subprocess.Popen(
            [*attached, sys.executable, "-m", *arguments],
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env={**os.environ, **self.environment},
        )

    def _wait(self, process: "subprocess.Popen[str]") -> None:
        asked = False
        while True:
            try:
                process.wait(_POLL_S)
                return
            except subprocess.TimeoutExpired:
                if self.killing():
                    process.kill()
                elif self.stopping() and not asked:
                    asked = True
                    process.terminate()


def _failure(code: int, last_line: str, *, is_asked: bool) -> str | None:
    if code >= 0:
        return None if code == 0 else last_line.removeprefix("error: ") or f"exit code {code}"
    # Such a process had no time for a message: the line is of its progress.
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as by the system when memory runs out" if -code == signal.SIGKILL and not is_asked else ""
    return f"it was ended by {name}{hint}"


class _LastLine(threading.Thread):
    """Copies the standard error of a process and keeps its last line that is not empty."""

    def __init__(self, process: "subprocess.Popen[str]", target: TextIO | None) -> None:
        super().__init__(daemon=True)
        self._process, self._target, self._line = process, target, ""
        self.start()

    def run(self) -> None:
        """See `threading.Thread`."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with contextlib.suppress(OSError, ValueError):  # the terminal is closed, or the disk full
                print(line, end="", file=self._target, flush=True)
            self._line = line.strip() or self._line

    def get(self) -> str:
        """Returns the line, once the process has closed its standard error."""
        self.join()
        return self._line
