"""The common end of the processes of a run when one of them fails alone.

The others wait in an update for that process's part of it, where no Python code can end them, until JAX aborts them all
with stack traces. So a thread in each process watches for the failure of another, and ends its process.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.process_store import process_store

_FAILURE = "psann_jax/failure"  # in the key-value store: the message of the process that failed
_POLL_S = 0.5
_CODE = 2

_actions: list[Callable[[], object]] = []


@contextlib.contextmanager
def before_exit(action: Callable[[], object]) -> Iterator[None]:
    """Lets `end_together` call `action` before it ends this process, while the context lasts; the last one first."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """If a process raises UserError in this context, the others exit with code 2; process 0 shows the message.

    Before, each does what `before_exit` names. All processes must use this context.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch()
    try:
        yield
    except UserError as error:
        watch.stop()
        process_store().key_value_set(_FAILURE, _message(error), allow_overwrite=True)
        raise
    finally:
        watch.stop()


def _message(error: UserError) -> str:
    return str(error) if jax.process_index() == 0 else f"process {jax.process_index()}: {error}"


class _Watch:
    """The thread that ends this process after the failure of another."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; does not return if the thread is ending the process already."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            try:
                message = process_store().key_value_try_get(_FAILURE)
            except jax.errors.JaxRuntimeError:
                continue  # there is no such key; if the connection is broken, JAX itself ends the process
            _end_process(message)


def _end_process(message: str) -> None:
    lines = [message] if jax.process_index() == 0 else []
    for action in reversed(_actions):
        try:
            action()
        except Exception as error:  # an action that fails must not keep the process alive
            lines.append(one_line(error))
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()  # waits for the other processes, which need process 0 until then
    os._exit(_CODE)
