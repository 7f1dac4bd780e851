"""Prepares pieces in several processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_connections
from typing import Any

from psann_jax.data.piece_task import PieceTask, prepare_piece
from psann_jax.data.preparation import Run, run_here
from psann_jax.data.prepare_progress import PrepareProgress
from psann_jax.utils.errors import UserError

_POLL_S = 0.5


def run_in_processes(jobs: int) -> Run:
    """Returns a function that does tasks in `jobs` processes, or in this one if that is 1.

    The processes are spawned, because a fork of a process with threads may hang. They end at once when this process
    ends or raises; files that are written stay.
    """
    return run_here if jobs == 1 else functools.partial(_run, jobs)


def _run(jobs: int, tasks: list[PieceTask], progress: PrepareProgress) -> None:
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", 2)  # starts the resource tracker of multiprocessing, which unblocks SIGINT
    with contextlib.ExitStack() as stack:
        alive, owner = context.Pipe(duplex=False)
        arguments = (alive, counts, max((os.cpu_count() or 1) // jobs, 1))
        pool = ProcessPoolExecutor(min(jobs, len(tasks) or 1), context, _start_worker, arguments)
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(owner.close)  # ends the workers; called before the pool waits for them
        with _without_interrupts():
            waiting = {pool.submit(_do, task) for task in tasks}
        while waiting:
            done, waiting = wait(waiting, _POLL_S, FIRST_EXCEPTION)
            progress.set(*counts[:])
            try:
                for future in done:
                    future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "--jobs: a process was killed, perhaps for lack of memory; start again with fewer jobs, which "
                    "continues with what is missing"
                ) from error


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Blocks SIGINT, also in processes that are started meanwhile.

    Ctrl-C goes to all processes of a terminal. This one ends the others, which would show their tracebacks.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


_counts: Any = None  # in a worker: bytes of text and tokens so far, of all workers


def _start_worker(alive: Connection, counts: Any, threads: int) -> None:
    """Prepares a worker process."""
    global _counts
    _counts = counts
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizers library
    threading.Thread(target=_end_with_owner, args=(alive,), daemon=True).start()


def _end_with_owner(alive: Connection) -> None:
    """Ends this process when the one that started it has ended or has closed its end of the pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_connections([alive, parent.sentinel])
    os._exit(1)


def _do(task: PieceTask) -> None:
    def report(n_bytes: int, n_tokens: int) -> None:
        with _counts.get_lock():
            _counts[0] += n_bytes
            _counts[1] += n_tokens

    prepare_piece(task, report)
