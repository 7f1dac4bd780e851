"""Contenders of a measurement, each in a process of its own.

The parent asks one process at a time to work and the others wait, so that contenders can take turns in a few
seconds' rhythm, on a machine whose speed changes, and yet share neither thread pools nor memory: the peak
memory of a process is that of its contender alone.
"""

import importlib
import multiprocessing
import signal
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import psutil

from psann_jax.errors import UserError


class Contender(Protocol):
    """What a module's `make` returns in the process of a worker."""

    facts: dict[str, Any]

    def run(self, n_steps: int) -> list[float]:
        """Takes training steps; seconds of each."""

    def peak_memory_mb(self) -> float:
        """The most memory in use so far, in 10^6 bytes."""


class Worker:
    """A process that makes a contender and does what it is asked to.

    Attributes:
      name: for messages.
      facts: of the contender, once it is made.
    """

    def __init__(self, name: str, module: str, *args: Any):
        """Starts the process and waits until ``module.make(*args)`` is done.

        Raises:
          UserError: as raised in the process, or the process died.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, module, args), name=name, daemon=True)
        # Ctrl-C reaches all processes. The new one inherits the block and leaves it to this one to end it.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        theirs.close()
        try:
            self.facts: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *args: Any) -> Any:
        """Calls a method of the contender and waits for its result."""
        self._connection.send((method, args))
        return self._receive()

    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far, over all cores."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            raise UserError(
                f"{self.name}: its process ended with code {code}; -9 hints at too little memory"
            ) from error
        if kind == "mistake":
            raise UserError(value)
        if kind == "crash":
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.terminate()
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection, module: str, args: tuple[Any, ...]) -> None:
    """The life of a worker's process; it ends when the parent does."""
    try:
        contender: Contender = importlib.import_module(module).make(*args)
        connection.send(("result", contender.facts))
        while True:
            method, method_args = connection.recv()
            connection.send(("result", getattr(contender, method)(*method_args)))
    except (EOFError, ConnectionError):
        return
    except UserError as error:
        connection.send(("mistake", str(error)))
    except Exception:
        connection.send(("crash", traceback.format_exc()))
