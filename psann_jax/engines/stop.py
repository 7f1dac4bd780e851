"""Stop signals of a command that runs jobs: it asks all of them to save, waits, and then ends."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

RUNS_SAVE = "all runs to save their state"


class Stop:
    """Context in which SIGINT, SIGTERM, SIGUSR1 and SIGHUP are requests to all jobs to save and end.

    A second Ctrl-C raises KeyboardInterrupt at once. Python allows handlers in the main thread only; in another thread
    the signals keep their effects.

    Attributes:
      requested: set when jobs are to save and end.
      immediate: set when they are to end without saving.
    """

    def __init__(self, announce: str) -> None:
        """Stores the settings.

        Args:
          announce: what a signal makes the command wait for, as `RUNS_SAVE`; "": a job whose output is shown says it.
        """
        self.requested, self.immediate = threading.Event(), threading.Event()
        self._announce = announce
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and background jobs of a shell have it
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def end(self) -> None:
        """Ends the command as the received signal would have; does nothing without one.

        Raises:
          KeyboardInterrupt: for SIGINT.
          SystemExit: for the others, with the exit code that a shell gives to a command that a signal ended.
        """
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise SystemExit(128 + self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            self.immediate.set()
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        self.requested.set()
        if self._announce:
            again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # the terminal may be closed
                line = f"\n{self._received.name} received: waiting for {self._announce}{again}\n"
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
