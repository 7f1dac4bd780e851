"""A run or a sweep in a bucket: it works on a local copy of its workdir, which a thread copies to the bucket.

In the bucket, the metrics are at least as new as the newest checkpoint, and ``summary.json`` appears last. So a run
whose machine is gone resumes from the bucket as from a disk; it repeats the steps since the last checkpoint that was
copied. The local copy is deleted when the run ends, and made again when it starts. If a process ends before all is in
the bucket, its copy stays, and the next start on this machine continues with it, unless another was there first.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath

import filelock
import jax

from psann_jax.train.common_end import before_exit
from psann_jax.train.lease import LEASE, RENEW_S, Lease, LostLeaseError
from psann_jax.train.metrics import METRICS, TENSORBOARD
from psann_jax.train.processes import raise_together
from psann_jax.train.remote_checkpoints import RemoteCheckpoints
from psann_jax.train.workdir import CHECKPOINTS, PRIVATE, SUMMARY, make_private
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors
from psann_jax.utils.locations import BucketUrl

_PROFILE = "profile"  # as TENSORBOARD, a directory to which a run only adds files
_POLL_S = 0.5  # between looks for new checkpoints
# Between copies of the metrics: at least so many seconds, and so many times what the last copy took.
_MIN_SECONDS, _COST_FACTOR = 20.0, 20
_RETRY_S = 10.0


@contextlib.contextmanager
def local_workdir(location: Path | BucketUrl, cache: Path) -> Iterator[Path]:
    """Yields the directory on a local disk in which this process of a run works.

    If several processes train together, all call this function. Process 0 does as in `leased_workdir`; for a workdir in
    a bucket, each of the others gets a copy of its own, which it only reads.

    Args:
      location: the workdir.
      cache: the directory of prepared data, on whose disk the copy is made.

    Raises:
      UserError: see `leased_workdir`.
    """
    if isinstance(location, Path):
        yield location
        return
    index = jax.process_index()
    local = _copy(location, cache, f".process_{index}" if index else "")
    with contextlib.ExitStack() as stack:
        with raise_together():  # first, because it may have to wait for the lease
            if index == 0:
                stack.enter_context(leased_workdir(location, cache))
        with raise_together():
            if index != 0:
                stack.callback(shutil.rmtree, local, ignore_errors=True)
                _make_empty(local)
                Mirror(Bucket(location, "--workdir"), local).pull()
        with before_exit(stack.close):
            yield local
        with raise_together():  # none may end while process 0 still copies
            stack.close()


@contextlib.contextmanager
def leased_workdir(location: Path | BucketUrl, cache: Path) -> Iterator[Path]:
    """Yields the directory on a local disk in which a run or a sweep of one process works.

    For a workdir in a bucket, this process owns its lease while the context lasts, and at the end everything is in the
    bucket.

    Args:
      location: the workdir; a path is returned as it is.
      cache: the directory of prepared data, on whose disk the copy is made.

    Raises:
      UserError: another process is training in the workdir, or the bucket or the cache cannot be read or written.
    """
    if isinstance(location, Path):
        yield location
        return
    local, bucket = _copy(location, cache), Bucket(location, "--workdir")
    with contextlib.ExitStack() as stack:
        marker = _copy(location, cache, ".copy")
        with storage_errors(local):
            local.parent.mkdir(parents=True, exist_ok=True)
            lease = stack.enter_context(_leased(bucket, _copy(location, cache, ".lock"), marker))
        mirror = Mirror(bucket, local, lease, marker)
        mirror.begin()
        print(f"{location}: working on a copy in {local}", flush=True)
        with mirror.running():
            yield local
        print(f"{location}: has all files of the copy", flush=True)


@contextlib.contextmanager
def _leased(bucket: Bucket, lock_file: Path, marker: Path) -> Iterator[Lease]:
    """Owns the lease while the context lasts; it stays in the bucket if there is still a `marker` at the end."""
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"{bucket.url}: another process is training in this workdir") from error
    try:
        lease = Lease(bucket, lock_file, earlier_copy=marker.read_text() if marker.exists() else "")
        lease.acquire(lambda line: print(line, file=sys.stderr, flush=True))
        try:
            yield lease
        finally:
            if not marker.exists():
                with contextlib.suppress(UserError):  # then it becomes stale
                    lease.release()
    finally:
        lock.release()


def _copy(url: BucketUrl, cache: Path, suffix: str = "") -> Path:
    """Returns the path of the copy of a workdir, which has its name, or of a file beside it."""
    return cache / "buckets" / hashlib.sha256(str(url).encode()).hexdigest()[:20] / f"{url.name}{suffix}"


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    _make_directory(directory)


def _make_directory(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    make_private(directory)


class Mirror:
    """The files of a run in a bucket and on the local disk."""

    def __init__(self, bucket: Bucket, local: Path, lease: Lease | None = None, marker: Path | None = None) -> None:
        """Copies nothing yet.

        Args:
          bucket: the workdir in the bucket.
          local: the copy.
          lease: of the workdir; None: only `pull` is called.
          marker: a file with the name of the copy, see `Lease`, that exists while the copy may have what the bucket
            lacks; None: only `pull` is called.
        """
        self._bucket, self._local, self._lease, self._marker = bucket, local, lease, marker
        self._staging = local.with_name(f"{local.name}.upload")  # for checkpoints on their way, on the same disk
        self._checkpoints: dict[str, RemoteCheckpoints] = {}  # by the name of the run in the directory, "" for itself
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of files as they are in the bucket
        self._next_files = time.monotonic()
        self._end = threading.Event()
        self._lost: UserError | None = None
        self._warned = False

    # --- from the bucket ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Makes the copy, or continues with the one of an earlier process, if no other has written since.

        Raises:
          UserError: the bucket cannot be read or written, or the local disk cannot be written.
        """
        assert self._lease is not None
        assert self._marker is not None
        with storage_errors(self._local):
            is_left = self._marker.exists()
            if is_left and self._marker.read_text() == self._lease.copy:
                print(f"{self._bucket.url}: continuing with what an earlier start left in {self._local}", flush=True)
                _make_directory(self._local)
                self.pull()
                self._push_rest()  # other processes of the run read it in the bucket
                return
            if is_left:
                self._set_aside()
            self._marker.unlink(missing_ok=True)
            _make_empty(self._local)
            self.pull()
            atomic_write(self._marker, self._lease.copy)

    def _set_aside(self) -> None:
        """Keeps a copy that cannot be continued, in place of the last one that was kept."""
        if not self._local.exists():
            return
        aside = self._local.with_name(f"{self._local.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        self._local.rename(aside)
        print(
            f"{self._bucket.url}: the lease of an earlier start on this machine is gone, so others may have written "
            f"since; what it may not have copied to its end is kept: the files are in {aside} until that happens again",
            file=sys.stderr,
            flush=True,
        )

    def pull(self) -> None:
        """Copies what a run needs to resume and is not here, and deletes what interrupted copies left in the bucket.

        Raises:
          UserError: the bucket cannot be read, or the local disk cannot be written.
        """
        with storage_errors(self._local):
            names = set(self._bucket.files())
            others = [name for name in names if _is_wanted(name) and not (self._local / name).exists()]
            self._bucket.download(others, self._local)
            self._copied = {name: _version(self._local / name) for name in others}
            for run, of_run in _by_run(names).items():
                checkpoints = self._checkpoints_of(run)
                partial = checkpoints.pull_small(of_run)
                if self._lease is not None:
                    self._bucket.below(run).delete(partial)
                checkpoints.pull_newest(of_run)

    def _checkpoints_of(self, run: str) -> RemoteCheckpoints:
        if run not in self._checkpoints:
            self._checkpoints[run] = RemoteCheckpoints(self._bucket.below(run), self._local / run)
        return self._checkpoints[run]

    def _runs(self) -> list[str]:
        """Returns the names of all runs in the copy that have checkpoints."""
        return sorted(_parent(path.relative_to(self._local)) for path in self._local.rglob(CHECKPOINTS))

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
        staged = {run: self._checkpoints_of(run).stage(self._staging / run) for run in self._runs()}
        if not (any(staged.values()) or everything or time.monotonic() >= self._next_files):
            return
        began = time.monotonic()
        self._lease.check()
        metrics = {path: (_version(path), path.read_bytes()) for path in self._local.rglob(METRICS)}
        self._push_files(_is_plain)
        for path, (version, rows) in metrics.items():
            name = path.relative_to(self._local).as_posix()
            if self._copied.get(name) != version:
                self._bucket.write(name, rows)
                self._copied[name] = version
        for run, checkpoints in staged.items():
            for step, checksums in checkpoints.items():
                self._checkpoints_of(run).push(self._staging / run, step, checksums, self._lease.check)
            self._checkpoints_of(run).push_deletions()
        self._push_files(lambda path: path.name == SUMMARY)
        now = time.monotonic()
        self._next_files = now + max(_MIN_SECONDS, _COST_FACTOR * (now - began))

    def _push_files(self, is_chosen: Callable[[PurePath], bool]) -> None:
        """Copies the chosen files that have changed."""
        for path in sorted(self._local.rglob("*")):
            name = path.relative_to(self._local).as_posix()
            if not is_chosen(PurePath(name)) or not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
                version = _version(path)
                if self._copied.get(name) != version:
                    self._bucket.upload(self._local, [name])
                    self._copied[name] = version

    def _finish(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._push_rest()
        assert self._marker is not None
        self._marker.unlink(missing_ok=True)  # first: a kill must not leave it with a part of the copy
        for directory in (self._staging, self._local):
            shutil.rmtree(directory, ignore_errors=True)

    def _push_rest(self) -> None:
        with storage_errors(self._local):
            for run in self._runs():
                self._checkpoints_of(run).add_checksums()
        try:
            self.push(everything=True)
        except LostLeaseError:
            raise
        except UserError as error:
            raise UserError(
                f"{error}; the files are in {self._local}; the same command on this machine continues with them"
            ) from error

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


def _parent(path: PurePath) -> str:
    """Returns the name of the directory of a path, "" for the one that all names are relative to."""
    return "" if path.parent == PurePath() else path.parent.as_posix()


def _by_run(names: Iterable[str]) -> dict[str, set[str]]:
    """Returns the names of all objects of checkpoints, relative to the runs that they belong to, by run."""
    found: dict[str, set[str]] = {}
    for path in map(PurePosixPath, names):
        if CHECKPOINTS in path.parts:
            run = "/".join(path.parts[: path.parts.index(CHECKPOINTS)])
            found.setdefault(run, set()).add(path.relative_to(run).as_posix())
    return found


def _is_wanted(name: str) -> bool:
    """Returns whether a run that resumes needs an object; not of checkpoints."""
    return name != LEASE and not {TENSORBOARD, _PROFILE, CHECKPOINTS} & set(PurePath(name).parts)


def _is_plain(path: PurePath) -> bool:
    """Returns whether a file is copied as it is; checkpoints, metrics and summary are copied in their order."""
    in_order = CHECKPOINTS in path.parts or path.name in (METRICS, SUMMARY)
    return not in_order and path.name != PRIVATE and not path.name.endswith((".tmp", ".lock"))
