"""Runs jobs as tasks of a Ray cluster whose nodes all see one folder."""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psann_jax.engines.engine import Job, K, Watch
from psann_jax.engines.place import STOPPED, Place
from psann_jax.engines.sharing import part_of_gpu
from psann_jax.engines.stop import RUNS_SAVE, Stop
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.files import storage_errors

_MARKER = ".ray.tmp"
_REFRESH_S, _POLL_S, _MARKER_S, _CONNECT_S = 0.5, 0.1, 1.0, 20.0
_RETRIES = 20  # of a job, after the death of a node or a worker; it resumes from what it has saved


@dataclass(frozen=True)
class Wording:
    """How messages name the jobs.

    Attributes:
      setting: the flag or setting that names the folder.
      job: one job.
      stopping: what the command waits for after a signal.
    """

    setting: str = "--workdir"
    job: str = "run"
    stopping: str = RUNS_SAVE


@dataclass(frozen=True)
class RayEngine:
    """Each job is a Ray task. If its node dies, it starts again on another.

    Attributes:
      folder: all nodes see it under this path.
      address: HOST:PORT of the cluster; None: the one in RAY_ADDRESS or that of this machine, else Ray starts one.
      cpus: cores of a job.
      gpus: GPUs of a job, possibly a part of one; None: 1 if the cluster has GPUs, else 0.
      wording: of messages.
    """

    folder: Path
    address: str | None = None
    cpus: int = 1
    gpus: float | None = None
    wording: Wording = Wording()

    def at_once(self, n_jobs: int) -> bool:
        """See `Engine`."""
        return True

    def run(self, jobs: Mapping[K, Job], watch: Watch[K]) -> None:
        """See `Engine`."""
        if not jobs:
            return
        gpus = self.connect()
        with Stop(self.wording.stopping) as stop, _marker(self.folder, self.wording.setting) as marker:
            _run(jobs, watch, stop, _Tasks(marker, self.cpus, gpus, self._environment(gpus)))
        stop.end()

    def connect(self) -> float:
        """Joins the cluster and prints its size, unless this process has; returns the number of GPUs of a job.

        Raises:
          UserError: no cluster can be used.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics to its makers
        import ray

        is_first = not ray.is_initialized()
        try:
            if self.address is not None:  # Ray would wait for minutes where nothing listens
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host, int(port)), _CONNECT_S).close()
            ray.init(self.address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise UserError(f"--address: no Ray cluster can be used at {where}: {one_line(error)}") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus if self.gpus is not None else float(any(node.get("GPU") for node in nodes))
        if is_first:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
            line = f"Ray: {len(nodes)} nodes with {total['CPU']:g} CPUs and {total['GPU']:g} GPUs; "
            line += f"each {self.wording.job} uses {self.cpus} CPUs and {gpus:g} GPUs"
            if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= gpus for node in nodes):
                line += f"; no node has that many, so the {self.wording.job}s wait for one"
            print(line, flush=True)
        return gpus

    def _environment(self, gpus: float) -> dict[str, str]:
        threads = str(self.cpus)  # of XLA, which would use all cores, and of the tokenizers library
        environment = {"NPROC": threads, "RAYON_NUM_THREADS": threads}
        if self.gpus == 0:
            environment["JAX_PLATFORMS"] = "cpu"
        return environment | (part_of_gpu(gpus) if 0 < gpus < 1 else {})


# --- in the process of the command ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Marker:
    """A file in the folder with a number of this start. Jobs run while they see it.

    So a node finds out whether it sees the same folder, and all jobs save and end when the file is removed.
    """

    path: Path
    content: str
    setting: str
    cwd: str = field(default_factory=os.getcwd)

    def is_seen(self) -> bool:
        try:
            return self.path.read_text() == self.content
        except OSError:
            return False


@contextlib.contextmanager
def _marker(folder: Path, setting: str) -> Iterator[_Marker]:
    marker = _Marker(folder / _MARKER, secrets.token_hex(8), setting)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        marker.path.write_text(marker.content)
    try:
        yield marker
    finally:
        marker.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Tasks:
    """What all tasks have in common."""

    marker: _Marker
    cpus: int
    gpus: float
    environment: Mapping[str, str]

    def submit(self, key: object, job: Job) -> Any:
        import ray

        remote = ray.remote(_do).options(
            name=str(key), num_cpus=self.cpus, num_gpus=self.gpus, max_retries=_RETRIES, retry_exceptions=False
        )
        return remote.remote(job, self.marker, self.environment, self.gpus < 1)


def _run(jobs: Mapping[K, Job], watch: Watch[K], stop: Stop, tasks: _Tasks) -> None:
    import ray

    running = {tasks.submit(key, job): key for key, job in jobs.items()}
    try:
        while running:
            ended, _ = ray.wait(list(running), num_returns=len(running), timeout=_REFRESH_S)
            if stop.requested.is_set() and tasks.marker.is_seen():
                _stop(running, tasks.marker)
            for ref in ended:
                key, error = running.pop(ref), _result(ref)
                if not stop.requested.is_set():
                    watch.ended(key, error)
            watch.refresh()
    except BaseException:
        _stop(running, tasks.marker)
        if not stop.immediate.is_set():
            ray.wait(list(running), num_returns=len(running))  # they save
        raise


def _stop(running: Iterable[Any], marker: _Marker) -> None:
    import ray

    marker.path.unlink(missing_ok=True)
    for ref in running:  # those that wait for a node; the others ignore it and save
        ray.cancel(ref)


def _result(ref: Any) -> str | None:
    """The error of an ended job, also if no node has survived it."""
    import ray.exceptions

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    except ray.exceptions.TaskCancelledError:
        return STOPPED
    except ray.exceptions.RayError as error:
        return f"its node or worker died {_RETRIES + 1} times: {one_line(error)}"


# --- on a node ------------------------------------------------------------------------------------------


def _do(job: Job, marker: _Marker, environment: Mapping[str, str], shares: bool) -> str | None:
    """Does a job in a worker of Ray."""
    with contextlib.suppress(OSError):  # then relative paths are not found, and named
        os.chdir(marker.cwd)
    if not marker.is_seen():
        seen = f"{marker.path.parent} is not the same folder on {socket.gethostname()}"
        return f"{marker.setting}: {seen}; choose one that all nodes see"
    stopping, ended = _Polled(marker), threading.Event()
    place = Place(stopping, shows_output=False, shares=shares, environment=environment)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(job, place)
        future.add_done_callback(lambda _: ended.set())
        exiting = _wait(ended, stopping)
    if exiting:
        raise exiting  # Ray then does the task on another node, where the run resumes
    return future.result()


def _wait(ended: threading.Event, stopping: "_Polled") -> SystemExit | None:
    """Waits in the main thread for the end of a job; returns the exception that asks the worker to exit meanwhile."""
    exiting = None
    while True:
        try:
            while not ended.is_set():
                time.sleep(_POLL_S)  # holds no lock, as waiting does, which an exception would leave in disorder
            return exiting
        except KeyboardInterrupt:  # Ray raises it in this thread when it cancels the task
            pass
        except SystemExit as error:  # and this when the worker gets SIGTERM, as on a node that shuts down
            stopping.gone, exiting = True, error


class _Polled:
    """Whether the marker is `gone`; looks at most once a second, because the disk is that of all runs."""

    def __init__(self, marker: _Marker) -> None:
        self._marker, self.gone, self._next = marker, False, 0.0

    def __call__(self) -> bool:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _MARKER_S
            self.gone = self.gone or not self._marker.is_seen()
        return self.gone
