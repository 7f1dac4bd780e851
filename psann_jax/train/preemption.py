"""Ends a run in good order on SIGTERM, SIGUSR1 or Ctrl-C: the handlers set a flag, the loop asks for it."""

import os
import signal
import threading
import warnings
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_CTRL_C = b"\nstopping as soon as the state is saved; press Ctrl-C again to interrupt at once\n"


class StopSignals:
    """While in use, asks the loop to stop where the default action would kill the process.

    SIGTERM is what cluster schedulers and container engines send before they kill; SIGUSR1 is what SLURM can be told
    to send some time earlier (``--signal=USR1@120``). A second Ctrl-C raises KeyboardInterrupt. The earlier
    handlers come back on exit.

    Several processes must stop after the same step, whichever of them got the signal. JAX's preemption service
    brings that about: it listens for SIGTERM in each process and agrees on a step that none has begun, without any
    work for the devices. There, the other signals are passed on to it as SIGTERM.

    Handlers belong to the main thread; in another one nothing is installed and a warning says so.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0
        self._agreed = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "not in the main thread: SIGTERM and Ctrl-C will not save the state before they end the run",
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
            os.write(2, _CTRL_C)  # unlike print, allowed in a handler that interrupts another print
        self._received = signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def received(self) -> str | None:
        """The name of the signal that this process got, for messages. Other processes may have got none."""
        return self._received.name if self._received else None

    def should_stop(self, step: int) -> bool:
        """Whether to save and end the run now; once true, it stays true.

        Ask at every step boundary, in all processes. It may be asked between the batches of an evaluation too,
        with the step of the evaluation: one process stops there, several go on to their agreed step.

        Args:
          step: number of updates done, the same in all processes.
        """
        if jax.process_count() == 1:
            return self._received is not None
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step)
        return self._agreed
