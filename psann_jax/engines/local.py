"""Runs jobs on this machine, one after the other or several at once."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from psann_jax.engines.engine import Job, K, Watch
from psann_jax.engines.place import Place
from psann_jax.engines.sharing import divide, find_devices
from psann_jax.engines.stop import RUNS_SAVE, Stop

_REFRESH_S = 0.5


@dataclass(frozen=True)
class LocalEngine:
    """Jobs in threads, each of which waits for the child processes of its job.

    Attributes:
      n: number of jobs at once. One alone has the whole machine, and shows its output.
    """

    n: int = 1

    def at_once(self, n_jobs: int) -> bool:
        """See `Engine`."""
        return min(self.n, n_jobs) > 1

    def run(self, jobs: Mapping[K, Job], watch: Watch[K]) -> None:
        """See `Engine`."""
        if not jobs:
            return
        with Stop(RUNS_SAVE if self.at_once(len(jobs)) else "") as stop:
            _run(jobs, watch, stop, self._places(min(self.n, len(jobs)), stop))
        stop.end()

    def _places(self, n_jobs: int, stop: Stop) -> list[Place]:
        place = functools.partial(Place, stop.requested.is_set, stop.immediate.is_set)
        if n_jobs == 1:
            return [place()]
        shares = divide(n_jobs, *find_devices())
        return [place(False, share.shares, share.cores, share.environment) for share in shares]


def _run(jobs: Mapping[K, Job], watch: Watch[K], stop: Stop, free: list[Place]) -> None:
    """Runs jobs in as many threads as there are places."""
    waiting, alone = list(jobs)[::-1], len(free) == 1
    running: dict[Future[str | None], tuple[K, Place]] = {}
    with ThreadPoolExecutor(len(free)) as pool, _stopped_by_errors(stop):

        def fill() -> None:
            while free and waiting and not stop.requested.is_set():
                key, place = waiting.pop(), free.pop(0)
                watch.started(key)
                running[pool.submit(jobs[key], place)] = key, place

        fill()
        while running:
            done, _ = wait(running, _REFRESH_S, FIRST_COMPLETED)
            ended = {key: future.result() for future, (key, _) in running.items() if future in done}
            free += [running.pop(future)[1] for future in done]
            if not alone:  # what `watch` does must neither delay the next jobs nor slow down one that runs alone
                fill()
            for key, error in ended.items() if not stop.requested.is_set() else ():
                watch.ended(key, error)
            watch.refresh()
            fill()


@contextlib.contextmanager
def _stopped_by_errors(stop: Stop) -> Iterator[None]:
    """Asks the jobs to save when the block raises; the pool then waits for them."""
    try:
        yield
    except BaseException:
        stop.requested.set()
        raise
