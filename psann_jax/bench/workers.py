"""Contenders of a measurement, each in its own process.

The parent lets one process work at a time while the others wait. So contenders can alternate every few seconds, on a
machine whose speed changes, without sharing thread pools or memory: the peak memory of a process is that of its
contender alone.
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
        """Runs training steps; returns the seconds of each."""

    def peak_memory_mb(self) -> float:
        """Returns the peak memory so far, in 10^6 bytes."""


class Worker:
    """A process that holds a contender and calls its methods on request.

    Attributes:
      name: the contender's name in messages.
      facts: the contender's facts.
    """

    def __init__(self, name: str, module: str, *args: Any):
        """Starts the process and waits until ``module.make(*args)`` returns.

        Raises:
          UserError: as raised in the process, or the process died.
          RuntimeError: any other exception in the process; the message has its traceback.
        """
        self.name = name
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "psann_jax.bench.workers", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C in a terminal reaches only the parent, which then kills the worker
        )
        theirs.close()
        try:
            self._connection.send((module, args))
            self.facts: dict[str, Any] = self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *args: Any) -> Any:
        """Calls a method of the contender and returns its result; raises as `__init__`."""
        self._connection.send((method, args))
        return self._receive()

    def cpu_seconds(self) -> float:
        """Returns the processor seconds of the process so far, over all cores."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            code = self._process.wait()
            raise UserError(f"{self.name}: its process ended with code {code}; -9 often means out of memory") from error
        if kind == "user error":
            raise UserError(value)
        if kind == "crash":
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        """Kills the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection) -> None:
    """Serves requests until the parent closes the connection or ends."""
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
        connection.send(("user error", str(error)))
    except Exception:
        connection.send(("crash", traceback.format_exc()))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
