"""A run in a bucket: a local copy of its workdir, on which the run works, and a thread that copies it to the bucket.

In the bucket, the metrics are at least as new as the newest checkpoint, and ``summary.json`` appears last. So a run
whose machine is gone resumes from the bucket as from a disk; it repeats the steps since the last checkpoint that was
copied. The local copy is deleted when the run ends, and made again when it starts.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax

from psann_jax.train.lease import LEASE, RENEW_S, Lease, LostLeaseError
from psann_jax.train.metrics import METRICS, TENSORBOARD
from psann_jax.train.processes import raise_together
from psann_jax.train.remote_checkpoints import RemoteCheckpoints
from psann_jax.train.workdir import CHECKPOINTS, PRIVATE, SUMMARY, make_private
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors
from psann_jax.utils.locations import BucketUrl

_PROFILE = "profile"
_WRITE_ONLY = (TENSORBOARD, _PROFILE)  # directories of which a run only adds files
_POLL_S = 0.5  # between looks for new checkpoints
# Between copies of the metrics: at least so many seconds, and so many times what the last copy took.
_MIN_SECONDS, _COST_FACTOR = 20.0, 20
_RETRY_S = 10.0


@contextlib.contextmanager
def local_workdir(location: Path | BucketUrl, cache: Path) -> Iterator[Path]:
    """Yields the directory on a local disk in which a run works.

    For a workdir in a bucket, this process owns the lease of the workdir while the context lasts, and at its end
    everything is in the bucket. If several processes train together, process 0 does that, and all call this function.

    Args:
      location: the workdir; a path is returned as it is.
      cache: the directory of prepared data; the copy is in it.

    Raises:
      UserError: another process is training in the workdir, or the bucket or the cache cannot be read or written.
    """
    if isinstance(location, Path):
        yield location
        return
    with contextlib.ExitStack() as stack:
        with raise_together():
            root = cache / "buckets" / _key(location)
            local = root / (location.name if jax.process_index() == 0 else f"process_{jax.process_index()}")
            bucket = Bucket(location, "--workdir")
            with storage_errors(root):
                root.mkdir(parents=True, exist_ok=True)
                lease = stack.enter_context(_leased(bucket, root)) if jax.process_index() == 0 else None
                shutil.rmtree(local, ignore_errors=True)
                local.mkdir()
                make_private(local)
        mirror = Mirror(bucket, local, root / "upload", lease)
        with raise_together():
            mirror.pull()
        if lease is not None:
            print(f"{location}: working on a copy in {local}", flush=True)
            stack.enter_context(mirror.running())
        else:
            stack.callback(shutil.rmtree, local, ignore_errors=True)
        yield local


@contextlib.contextmanager
def _leased(bucket: Bucket, root: Path) -> Iterator[Lease]:
    lock_file = root / "lock"
    try:
        with filelock.FileLock(lock_file).acquire(timeout=0):
            lease = Lease(bucket, lock_file)
            lease.acquire(lambda line: print(line, file=sys.stderr, flush=True))
            try:
                yield lease
            finally:
                with contextlib.suppress(UserError):  # then it becomes stale
                    lease.release()
    except filelock.Timeout as error:
        raise UserError(f"{bucket.url}: another process is training in this workdir") from error


def _key(url: BucketUrl) -> str:
    return hashlib.sha256(str(url).encode()).hexdigest()[:20]


class Mirror:
    """The files of a run in a bucket and on the local disk."""

    def __init__(self, bucket: Bucket, local: Path, staging: Path, lease: Lease | None) -> None:
        """Copies nothing yet.

        Args:
          bucket: the workdir in the bucket.
          local: an empty directory.
          staging: a directory for checkpoints on their way, on the same disk.
          lease: of the workdir; None: only `pull` is called.
        """
        self._bucket, self._local, self._staging, self._lease = bucket, local, staging, lease
        self._checkpoints = RemoteCheckpoints(bucket, local)
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of files as they are in the bucket
        self._next_files = time.monotonic()
        self._end = threading.Event()
        self._lost: UserError | None = None
        self._warned = False

    # --- from the bucket ------------------------------------------------------------------------------

    def pull(self) -> None:
        """Copies what a run needs to resume, and deletes what interrupted copies left in the bucket.

        Raises:
          UserError: the bucket cannot be read, or the local disk cannot be written.
        """
        with storage_errors(self._local):
            names = set(self._bucket.files())
            partial = self._checkpoints.pull_small(names)
            if self._lease is not None:
                self._bucket.delete(partial)
            others = [name for name in names if _is_wanted(name)]
            self._bucket.download(others, self._local)
            self._copied = {name: _version(self._local / name) for name in others}
            self._checkpoints.pull_newest(names)

    # --- to the bucket --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Copies files to the bucket while the context lasts, and the rest at its end.

        Raises:
          UserError: at the end, the bucket cannot be written; or another process has taken over the workdir.
        """
        threads = [threading.Thread(target=work, daemon=True) for work in (self._keep_lease, self._keep_copying)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join()
            self._finish()

    def push(self, *, everything: bool) -> None:
        """Copies new checkpoints, and other files if it is time for them.

        Args:
          everything: do not wait until it is time.

        Raises:
          UserError: the bucket cannot be written, or another process has taken over the workdir.
        """
        assert self._lease is not None
        staged = self._checkpoints.stage(self._staging)
        if not (staged or everything or time.monotonic() >= self._next_files):
            return
        began = time.monotonic()
        self._lease.check()
        self._push_files(metrics=self._read_metrics())
        for step, checksums in staged.items():
            self._checkpoints.push(self._staging, step, checksums, self._lease.check)
        self._checkpoints.push_deletions()
        self._push_summary()
        now = time.monotonic()
        self._next_files = now + max(_MIN_SECONDS, _COST_FACTOR * (now - began))

    def _read_metrics(self) -> bytes | None:
        path = self._local / METRICS
        return path.read_bytes() if path.exists() else None

    def _push_files(self, metrics: bytes | None) -> None:
        """Copies changed files; the metrics last, as a row of an evaluation says that its other files are there."""
        for path in sorted(self._local.rglob("*")):
            name = path.relative_to(self._local).as_posix()
            if not _is_pushed(name) or not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
                version = _version(path)
                if self._copied.get(name) != version:
                    self._bucket.upload(self._local, [name])
                    self._copied[name] = version
        if metrics is not None:
            self._bucket.write(METRICS, metrics)

    def _push_summary(self) -> None:
        path = self._local / SUMMARY
        if path.exists() and self._copied.get(SUMMARY) != _version(path):
            self._bucket.upload(self._local, [SUMMARY])
            self._copied[SUMMARY] = _version(path)

    def _finish(self) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            self.push(everything=True)
        except LostLeaseError:
            raise
        except UserError as error:
            raise UserError(f"{error}; the files of the run are in {self._local} until it starts again") from error
        for directory in (self._staging, self._local):
            shutil.rmtree(directory, ignore_errors=True)

    # --- threads --------------------------------------------------------------------------------------

    def _keep_lease(self) -> None:
        assert self._lease is not None
        while not self._end.wait(RENEW_S):
            try:
                self._lease.renew()
            except LostLeaseError as error:
                self._lost = error
                self._end.set()
                os.kill(os.getpid(), signal.SIGTERM)  # the run saves its state on the local disk and ends
            except UserError:  # the copying thread reports it
                pass

    def _keep_copying(self) -> None:
        pause = _POLL_S
        while not self._end.wait(pause):
            try:
                self.push(everything=False)
                pause, self._warned = _POLL_S, False
            except LostLeaseError:
                return
            except (UserError, OSError) as error:
                if not self._warned:
                    print(f"warning: {error}; trying again", file=sys.stderr, flush=True)
                pause, self._warned = _RETRY_S, True


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _is_wanted(name: str) -> bool:
    """Returns whether a run that resumes needs an object of its workdir; not of checkpoints."""
    first = name.split("/")[0]
    return name != LEASE and first not in (*_WRITE_ONLY, CHECKPOINTS)


def _is_pushed(name: str) -> bool:
    """Returns whether a file is copied as it is; checkpoints, metrics and summary are copied in their order."""
    first = name.split("/")[0]
    return first not in (CHECKPOINTS, METRICS, PRIVATE, SUMMARY) and not name.endswith((".tmp", ".lock"))
