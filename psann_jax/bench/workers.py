"""Contenders of a measurement, each in a process of its own.

The parent asks one process at a time to work and the others wait, so that contenders can take turns in a few
seconds' rhythm, on a machine whose speed changes, and yet share neither thread pools nor memory: the peak
memory of a process is that of its contender alone.
"""

import importlib
import os
import subprocess
import sys
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import psutil

from psann_jax.utils.errors import UserError


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
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "psann_jax.bench.workers", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C in a terminal is for this process alone, which then ends the other
        )
        theirs.close()
        try:
            self._connection.send((module, args))
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
            code = self._process.wait()
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
        self._connection.close()
        self._process.kill()  # it has nothing to lose
        self._process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection) -> None:
    """The life of a worker's process; it ends when the parent does."""
    try:
        module, args = connection.recv()
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


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
