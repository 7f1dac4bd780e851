"""Graceful stop on SIGTERM, SIGUSR1 or Ctrl-C: the handlers set a flag that the training loop checks."""

import os
import signal
import threading
import warnings
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_CTRL_C_MESSAGE = b"\nstopping as soon as the state is saved; press Ctrl-C again to interrupt at once\n"


class StopSignals:
    """Context in which stop signals set a flag instead of killing the process.

    Cluster schedulers and container engines send SIGTERM before they kill; SLURM can send SIGUSR1 some time earlier
    (``--signal=USR1@120``). A second Ctrl-C raises KeyboardInterrupt. The previous handlers are restored on exit.

    Several processes must stop after the same step, whichever of them got the signal. JAX's preemption service takes
    care of that: it listens for SIGTERM in each process and agrees on a step that none has begun, without any work for
    the devices. With several processes, the other signals are therefore forwarded to it as SIGTERM.

    Python allows handlers in the main thread only; in another thread nothing is installed, with a warning.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0
        self._agreed = False
        self._previous: dict[signal.Signals, Any] = {}

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
        if jax.process_count() == 1:
            watched.append(signal.SIGTERM)
        for number in watched:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            os.write(2, _CTRL_C_MESSAGE)  # unlike print, safe in a handler that interrupts another print
        self._received = signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def received(self) -> str | None:
        """The name of the signal that this process received, for messages; other processes may have received none."""
        return self._received.name if self._received else None

    def should_stop(self, step: int) -> bool:
        """Returns whether to save and end the run now; once true, it stays true.

        Call it at every step boundary, in all processes. It may also be called between the batches of an evaluation,
        with the step of the evaluation: a single process stops there, several continue to the step they agreed on.

        Args:
          step: number of updates done, the same in all processes.
        """
        if jax.process_count() == 1:
            return self._received is not None
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step)
        return self._agreed
