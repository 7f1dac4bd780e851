"""Checkpoints of a run in a bucket.

``checksums.json`` of a checkpoint is written last and deleted first, so a checkpoint in a bucket is whole if it has
that object. Orbax sees only copies on a local disk: it cannot write to s3://, and it renames what it has written, which
buckets cannot do.
"""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from psann_jax.train.checkpoint_format import STEP_PREFIX, add_checksums, is_complete, step_of, stored_items
from psann_jax.train.checkpoint_index import INDEX
from psann_jax.train.orbax_workarounds import find_unreadable
from psann_jax.train.workdir import CHECKPOINTS
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.checksums import CHECKSUMS, find_damage
from psann_jax.utils.locations import BucketUrl

_TRAINING = "training"  # the item of a checkpoint that only training reads
_DATA = "d"  # directory of an item that holds its arrays; all other files are small


class RemoteCheckpoints:
    """The checkpoints below a workdir in a bucket, and their copies below a local one."""

    def __init__(self, bucket: Bucket, workdir: Path) -> None:
        """Reads and writes nothing yet."""
        self._bucket, self._workdir = bucket, workdir
        self._directory = workdir / CHECKPOINTS
        self._known: dict[int, bytes] = {}  # checksums.json of the checkpoints that are in both places
        self._index = b""  # as it is in the bucket

    # --- from the bucket ------------------------------------------------------------------------------

    def pull_small(self, names: Collection[str]) -> list[str]:
        """Copies the index and, of whole checkpoints, all files but the arrays, as far as they are not here.

        With these, all checkpoints can be listed and chosen from; `pull` adds the arrays.

        Args:
          names: all objects of the workdir.

        Returns:
          The objects of checkpoints that are not whole, as interrupted uploads and deletions leave them.
        """
        by_step = _by_step(names)
        whole = {step: found for step, found in by_step.items() if f"{_name(step)}/{CHECKSUMS}" in found}
        present = {step for step in self._local() if is_complete(self._path(step))}
        small = [name for step in whole.keys() - present for name in whole[step] if not _is_data(name)]
        index, has_index = f"{CHECKPOINTS}/{INDEX}", (self._directory / INDEX).exists()
        self._bucket.download([name for name in (*[index] * (not has_index), *small) if name in names], self._workdir)
        if index in names:
            self._index = self._content(index, here=not has_index)
        for step in whole:
            self._known[step] = self._content(f"{_name(step)}/{CHECKSUMS}", here=step not in present)
        return [name for step, found in by_step.items() if step not in whole for name in found]

    def _content(self, name: str, *, here: bool) -> bytes:
        """The content of an object, from its copy if `here`; empty if it is gone."""
        return (self._workdir / name).read_bytes() if here else self._bucket.read(name) or b""

    def pull_newest(self, names: Collection[str]) -> None:
        """Copies the arrays of the newest checkpoint, and of earlier ones while the copies do not fit their checksums.

        Args:
          names: all objects of the workdir.
        """
        for step, checksums in sorted(self._local().items(), reverse=True):
            # A checkpoint that was made here may not be in the bucket yet.
            if find_damage(self._path(step)) is not None and self._known.get(step) == checksums:
                self.pull(step, names)
            if find_damage(self._path(step)) is None:
                return

    def pull(self, step: int, names: Collection[str], without: str | None = None) -> None:
        """Copies the arrays of a checkpoint.

        Args:
          step: of the checkpoint.
          names: all objects of the workdir.
          without: the name of an item that is not needed.
        """
        skipped = f"{_name(step)}/{without}/"
        wanted = [name for name in _by_step(names).get(step, ()) if _is_data(name) and not name.startswith(skipped)]
        self._bucket.download(wanted, self._workdir)

    # --- to the bucket --------------------------------------------------------------------------------

    def add_checksums(self) -> None:
        """Completes new checkpoints after which a process ended at once; call it only while nothing is being saved.

        One that cannot be read gets none: it is not copied, and a run that resumes here finds it damaged.
        """
        for path in self._directory.glob(f"{STEP_PREFIX}_*"):
            is_new = step_of(path.name) not in self._known  # others may have been copied here in part
            if is_new and not (path / CHECKSUMS).exists() and find_unreadable(path, stored_items(path)) is None:
                add_checksums(path)

    def stage(self, directory: Path) -> dict[int, bytes]:
        """Links new checkpoints that are whole into a directory, where the run does not delete them.

        Returns:
          The content of the checksums.json of each.
        """
        shutil.rmtree(directory, ignore_errors=True)
        staged = {}
        for step, checksums in self._local().items():
            if self._known.get(step) != checksums:
                try:
                    shutil.copytree(self._path(step), directory / _name(step), copy_function=_link)
                except (shutil.Error, FileNotFoundError):  # deleted meanwhile
                    shutil.rmtree(directory / _name(step), ignore_errors=True)
                    continue
                staged[step] = checksums
        return staged

    def push(self, directory: Path, step: int, checksums: bytes, check: Callable[[], None]) -> None:
        """Copies a staged checkpoint to the bucket.

        Args:
          directory: given to `stage`.
          step: of the checkpoint.
          checksums: the content of its checksums.json.
          check: raises an exception if this process may no longer write; called before the checkpoint becomes whole.
        """
        self._delete(step)  # another of the same step, which was damaged
        root = directory / _name(step)
        files = [path.relative_to(directory).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        marker = f"{_name(step)}/{CHECKSUMS}"
        self._bucket.upload(directory, [name for name in files if name != marker])
        check()
        self._bucket.write(marker, checksums)
        self._known[step] = checksums

    def push_deletions(self) -> None:
        """Deletes the checkpoints that the run has deleted, and updates the index."""
        path = self._directory / INDEX
        index = path.read_bytes() if path.exists() else self._index
        if index != self._index:
            self._bucket.write(f"{CHECKPOINTS}/{INDEX}", index)
            self._index = index
        for step in self._known.keys() - self._local().keys():
            self._delete(step)
            del self._known[step]

    def _delete(self, step: int) -> None:
        found = self._bucket.files(_name(step))
        self._bucket.delete([name for name in found if name == f"{_name(step)}/{CHECKSUMS}"])
        self._bucket.delete([name for name in found if name != f"{_name(step)}/{CHECKSUMS}"])

    def _path(self, step: int) -> Path:
        return self._directory / f"{STEP_PREFIX}_{step}"

    def _local(self) -> dict[int, bytes]:
        """Returns the checksums.json of each local checkpoint that has one."""
        found = {}
        for path in self._directory.glob(f"{STEP_PREFIX}_*/{CHECKSUMS}"):
            step = step_of(path.parent.name)
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # deleted meanwhile
                continue
            if step is not None:
                found[step] = content
        return found


class RemoteRun:
    """The checkpoints of a run in a bucket, for reading; another process may be writing them."""

    def __init__(self, url: BucketUrl, temporary: Path) -> None:
        """Copies what is needed to list and choose checkpoints.

        Args:
          url: the workdir.
          temporary: an empty directory for the copies.

        Raises:
          UserError: the bucket cannot be read.
        """
        bucket = Bucket(url, "workdir")
        self._names = bucket.files(CHECKPOINTS).keys()
        self._checkpoints = RemoteCheckpoints(bucket, temporary)
        self._checkpoints.pull_small(self._names)
        self.directory = temporary / CHECKPOINTS  # of the copies; missing if there is no whole checkpoint

    def pull(self, step: int) -> None:
        """Copies a checkpoint but the state of its optimizer, which only training needs.

        Raises:
          UserError: the bucket cannot be read.
        """
        self._checkpoints.pull(step, self._names, without=_TRAINING)


def _name(step: int) -> str:
    return f"{CHECKPOINTS}/{STEP_PREFIX}_{step}"


def _by_step(names: Collection[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name in names:
        parts = name.split("/")
        step = step_of(parts[1]) if parts[0] == CHECKPOINTS and len(parts) > 2 else None
        if step is not None:
            found.setdefault(step, []).append(name)
    return found


def _is_data(name: str) -> bool:
    return _DATA in PurePosixPath(name).parts


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)
