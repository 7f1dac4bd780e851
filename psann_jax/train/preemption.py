"""Graceful stop on SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: the handlers set a flag that the training loop checks."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StoppedError(Exception):
    """A signal has ended a run while it computed or waited; its state is that of the last update."""


class StopSignals:
    """Context in which stop signals set a flag instead of killing the process.

    Cluster schedulers and container engines send SIGTERM before they kill; SLURM can send SIGUSR1 some time earlier
    (``--signal=USR1@120``); a terminal that is closed sends SIGHUP, unless the command was started with nohup. A second
    Ctrl-C raises KeyboardInterrupt. The previous handlers are restored on exit.

    Python runs handlers between its own instructions only, so not while a program compiles or the device computes.
    Therefore a thread says at once that a signal has arrived, and what has to end first (`waiting_for`).

    Several processes must stop after the same step, whichever of them got the signal. JAX's preemption service takes
    care of that: it listens for SIGTERM in each process, which it reports itself, and agrees on a step that none has
    begun, without any work for the devices. With several processes, the other signals are therefore forwarded to it as
    SIGTERM.

    Python allows handlers in the main thread only; in another thread nothing is installed, with a warning.

    Attributes:
      waiting_for: what the run is doing, for the message: "the compilation".
    """

    def __init__(self) -> None:
        self.waiting_for = "the current update"
        self._received: str | None = None
        self._interrupts = 0
        self._agreed = False
        self._first: int | None = None  # the step of the first `should_stop`
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}
        self._reports = contextlib.ExitStack()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "not in the main thread: SIGTERM and Ctrl-C will end the run without saving its state",
                RuntimeWarning,
                stacklevel=2,
            )
            return self
        watched = [signal.SIGINT]
        if hasattr(signal, "SIGUSR1"):
            watched.append(signal.SIGUSR1)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            watched.append(signal.SIGHUP)
        if jax.process_count() == 1:
            watched.append(signal.SIGTERM)
        self._start_reporting(watched)
        for number in watched:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._reports.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
        if self._at_once:
            raise StoppedError

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While the context lasts, a signal does not wait for the next check of a run of one process.

        Raises:
          StoppedError: a signal has arrived. What the block was doing may be half done.
        """
        self._at_once = jax.process_count() == 1
        try:
            if self._at_once and self._received is not None:
                raise StoppedError
            yield
        finally:
            self._at_once = False

    def request(self, source: str) -> None:
        """Ends the run as a signal does, in all processes.

        Args:
          source: what ends it, for messages.
        """
        self._received = source
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _start_reporting(self, watched: list[signal.Signals]) -> None:
        """Starts the thread that reports signals; the interpreter writes their numbers to a pipe when they arrive."""
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        thread = threading.Thread(target=self._report, args=(receiver, set(watched)), daemon=True)
        thread.start()
        previous = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        self._reports.callback(os.close, receiver)
        self._reports.callback(thread.join)
        self._reports.callback(os.close, sender)  # ends the thread
        self._reports.callback(signal.set_wakeup_fd, previous)

    def _report(self, receiver: int, watched: set[signal.Signals]) -> None:
        reported: set[signal.Signals] = set()
        while number := os.read(receiver, 1):
            received = signal.Signals(number[0])
            if received in watched - reported:
                reported.add(received)
                again = "; press Ctrl-C again to end without saving" if received == signal.SIGINT else ""
                line = f"\n{received.name} received: waiting for {self.waiting_for}, then saving the state{again}\n"
                with contextlib.suppress(OSError):  # the terminal may be closed
                    os.write(2, line.encode())

    @property
    def received(self) -> str | None:
        """The signal or other source of the stop that this process received; other processes may have received none."""
        return self._received

    def should_stop(self, step: int) -> bool:
        """Returns whether to save and end the run now; once true, it stays true.

        Call it at every step boundary, in all processes. It may also be called between the batches of an evaluation,
        with the step of the evaluation: a single process stops there, several continue to the step they agreed on.

        Args:
          step: number of updates done, the same in all processes.
        """
        if jax.process_count() == 1:
            return self._received is not None
        if self._first is None:
            self._first = step
        # If a signal comes before the first call, JAX agrees on the step after 0, which a resumed run is long past.
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step - self._first)
        return self._agreed
