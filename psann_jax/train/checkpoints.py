"""Saving the whole training state with Orbax, and deleting old checkpoints.

A checkpoint (`psann_jax.train.checkpoint_format`) is written under a temporary name and renamed when complete, and
renamed again before it is deleted, so a kill at any time leaves only whole checkpoints under their names. Orbax sees
one checkpoint at a time, never the others. Then ``checksums.json`` is added, which reveals later damage. ``index.json``
beside the checkpoints names the last and the best one and holds their validation losses.
"""

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoint_deletion import delete, find_partial, remove
from psann_jax.train.checkpoint_format import FORMAT_VERSION, add_checksums, split_items, step_of
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.orbax_workarounds import saving_alone, saving_context, storage_error_reason
from psann_jax.train.processes import broadcast_from_leader
from psann_jax.train.workdir import is_private
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors

_SETTLE_S = 60  # for the beginning of a save


class Checkpoints(CheckpointReader, contextlib.AbstractContextManager["Checkpoints"]):
    """Writes, lists and restores the checkpoints of one run.

    Nothing is created or changed before the first `save` or `clear_partial`. If several processes train together, all
    of them call `save`, `wait` and `restore` with the same arguments, and all see the same directory, or private copies
    of it (`psann_jax.train.workdir.make_private`). In these, process 0 gathers the state in its memory and saves it.
    """

    def __init__(self, directory: str | Path, config: CheckpointConfig) -> None:
        """Opens the directory, which need not exist.

        Args:
          directory: of the checkpoints.
          config: which of them to keep.

        Raises:
          UserError: the name of the directory cannot be used in this locale.
        """
        super().__init__(directory)
        self._config = config
        self._response: ocp.AsyncResponse[None] | None = None
        self._saving: int | None = None
        self._lock = threading.Lock()
        self._busy = threading.Lock()  # while `save` runs
        # Orbax needs one disk for all processes; without one, process 0 saves for all.
        self._alone = jax.process_count() > 1 and is_private(self.directory.parent)

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- saving ---------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        tokenizer: bytes | None = None,
        final: bool = False,
    ) -> None:
        """Saves in the background, after the previous save has ended; the arrays may be donated at once.

        A step that is already saved is not written again, but its metrics are updated. That is how to record a loss
        that is known only after the save.

        Args:
          step: number of updates done.
          state: dict of pytrees of arrays with the key "params" and others.
          metadata: a JSON-like dict, at least {"config": ...}.
          metrics: a finite "val_loss" makes the checkpoint a candidate for the best one.
          tokenizer: the tokenizer file.
          final: wait until the checkpoint is on disk.

        Raises:
          UserError: the directory cannot be written, by this save or the previous one.
        """
        with self._busy:
            self.wait()
            if metrics is not None:
                self._index.record(step, metrics)
            # Also detects an unwritable directory before Orbax starts its threads, which would hang for minutes.
            with self._storage_errors(step):
                complete = broadcast_from_leader(self._prepare(step) if jax.process_index() == 0 else None)
            if not complete:
                self._start(step, state, metadata, tokenizer)
            else:
                with self._storage_errors(step):
                    self._finish(step)
            if final:
                self.wait()

    def _prepare(self, step: int) -> bool:
        """Returns whether a step is saved already; if not, deletes what has its name. Clears partial checkpoints."""
        self.clear_partial()  # first, because it may free the space for the index
        self._write_index()
        if step in self.steps():
            return True
        delete(self.path(step))
        return False

    def _start(self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any], tokenizer: bytes | None) -> None:
        items = split_items(state)
        # Orbax raises too, but leaves threads behind that hang for minutes.
        if not (items.get("params") and items.get("training")):
            raise ValueError('the state must hold "params" and more, at least the step')
        if tokenizer is not None:
            items["tokenizer"] = {"bytes": np.frombuffer(tokenizer, np.uint8)}
        versions = {name: packages.version(name) for name in ("psann_jax", "jax", "flax", "optax", "orbax-checkpoint")}
        self._saving = step
        self._intact.discard(step)
        with self._lock:  # of `_finish`, which deletes damaged checkpoints
            self._damaged.discard(step)  # `_prepare` has deleted it
        if self._alone:
            items = _on_host(items)
            if jax.process_index() != 0:
                return
        alone = saving_alone() if self._alone else contextlib.nullcontext()
        with self._storage_errors(step), saving_context(by_leader_alone=self._alone), alone:
            self._response = ocp.save_checkpointables_async(
                self.path(step),
                items,
                custom_metadata={"format_version": FORMAT_VERSION, "versions": versions, **metadata},
            )
        assert self._response is not None
        self._response.on_complete(lambda _: self._after_commit(step))

    def wait(self) -> None:
        """Waits until the current save, if any, is on disk.

        Raises:
          UserError: it could not be written; the earlier checkpoints are untouched.
        """
        if self._response is None or self._saving is None:
            return
        response, self._response = self._response, None
        with self._storage_errors(self._saving):
            response.result()
            self._finish(self._saving)

    def settle(self) -> None:
        """Waits for a save that another thread may just have begun, before that thread is ended.

        Raises:
          UserError: it could not be written.
        """
        self._busy.acquire(timeout=_SETTLE_S)  # it may wait in vain for a process that has failed
        self.wait()

    def close(self) -> None:
        """Waits for the current save."""
        self.wait()

    def _after_commit(self, step: int) -> None:
        # Runs in a background thread, where nobody could catch an error; `wait` repeats what failed.
        with contextlib.suppress(OSError):
            self._finish(step)

    def _finish(self, step: int) -> None:
        """Adds the checksums of a new checkpoint, deletes those that are no longer needed, and updates the index."""
        if jax.process_index() != 0:
            return
        with self._lock:
            add_checksums(self.path(step))
            self._delete_others()
        self._write_index()

    @contextlib.contextmanager
    def _storage_errors(self, step: int) -> Iterator[None]:
        """Converts errors of a full or unwritable disk to UserError, and deletes what was half-written."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = storage_error_reason(error)
            if reason is None:
                raise
            self._abandon()
            raise UserError(f"{self.directory}: cannot write the checkpoint of step {step}: {reason}") from error

    def _abandon(self) -> None:
        # Orbax does not wait for its other threads when one has failed, so some may still be writing. The next save
        # or the next run deletes what they leave behind.
        for _ in range(5):
            with contextlib.suppress(OSError):
                for partial in find_partial(self.directory):
                    remove(partial)
            time.sleep(0.1)

    # --- deleting -------------------------------------------------------------------------------------

    def clear_partial(self) -> list[str]:
        """Deletes what killed processes and interrupted copies left; call it only while nothing is being saved.

        Returns:
          One line about each directory or file that was named like a checkpoint.

        Raises:
          UserError: the directory is a file, or cannot be read or changed.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: is a file, must be the directory of the checkpoints; move it away")
        lines = []
        with storage_errors(self.directory), self._lock:
            for path in find_partial(self.directory):
                if step_of(path.name) is None:
                    remove(path)
                else:
                    delete(path)
                    lines.append(f"{path}: incomplete; deleted")
        return lines

    def _delete_others(self) -> None:
        usable = self.steps()
        keep = self.steps_to_keep(usable)
        for step in self._damaged.union(usable) - keep:
            delete(self.path(step))

    # --- which to keep --------------------------------------------------------------------------------

    def steps_to_keep(self, steps: Collection[int]) -> set[int]:
        """Returns the steps to keep: the latest, the best, multiples of `keep_every`; never damaged ones."""
        usable = sorted(s for s in steps if self._is_usable(s))
        keep = set(usable[-self._config.keep :])
        best = self._index.best(usable)
        if best is not None:
            keep.add(best)
        if self._config.keep_every:
            keep.update(s for s in usable if s % self._config.keep_every == 0)
        return keep

    def _write_index(self) -> None:
        if jax.process_index() == 0:
            with self._lock:
                self._index.write(self.steps())


def _on_host(tree: Any) -> Any:
    """Returns arrays that are divided over processes as whole host arrays; all processes must call it."""

    def gather(x: Any) -> np.ndarray:
        return np.asarray(x if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(lambda x: gather(x) if isinstance(x, jax.Array) else x, tree)
