"""Saving the whole training state with Orbax, and deleting old checkpoints.

A checkpoint (`psann_jax.train.checkpoint_format`) is written under a temporary name and renamed when complete, so a
kill at any time leaves only whole checkpoints. Then its ``checksums.json`` is added, which reveals later damage.
``index.json`` beside the checkpoints names the last and the best one and holds their validation losses.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from psann_jax.config import CheckpointConfig
from psann_jax.train.checkpoint_format import FORMAT_VERSION, STEP_PREFIX, is_complete, split_items
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.orbax_workarounds import context_without_timeouts, storage_error_reason
from psann_jax.train.processes import broadcast_from_leader
from psann_jax.utils.checksums import write_checksums
from psann_jax.utils.errors import UserError


class Checkpoints(CheckpointReader, contextlib.AbstractContextManager["Checkpoints"]):
    """Writes, lists and restores the checkpoints of one run.

    Nothing is created or changed before the first `save`. If several processes train together, all of them call `save`,
    `wait` and `restore` with the same arguments, and all see the same directory.
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
        self._writer: ocp.training.Checkpointer | None = None
        self._response: ocp.AsyncResponse[bool] | None = None
        self._saving: int | None = None
        self._lock = threading.Lock()
        self._checksummed: set[int] = set()

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
        self.wait()
        if metrics is not None:
            self._index.record(step, metrics)
        exists = self.path(step).exists()
        complete, damaged = broadcast_from_leader([step in self.steps(), exists and step not in self.steps()])
        # Also detects an unwritable directory before Orbax starts its threads, which would hang for minutes.
        with self._storage_errors(step):
            self._write_index()
        if not complete:
            self._start(step, state, metadata, tokenizer, overwrite=damaged)
        if final:
            self.wait()

    def _start(
        self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any], tokenizer: bytes | None, overwrite: bool
    ) -> None:
        items = split_items(state)
        # Orbax raises too, but leaves threads behind that hang for minutes.
        if not (items.get("params") and items.get("training")):
            raise ValueError('the state must hold "params" and more, at least the step')
        if tokenizer is not None:
            items["tokenizer"] = {"bytes": np.frombuffer(tokenizer, np.uint8)}
        versions = {name: packages.version(name) for name in ("psann_jax", "jax", "flax", "optax", "orbax-checkpoint")}
        self._saving = step
        self._intact.discard(step)
        self._checksummed.discard(step)
        with self._storage_errors(step):
            if self._writer is None:
                self._writer = ocp.training.Checkpointer(
                    self.directory,
                    context=context_without_timeouts(),
                    preservation_policy=_Preservation(self),
                    step_name_format=ocp.path.step.standard_name_format(step_prefix=STEP_PREFIX),
                    cleanup_tmp_directories=True,
                )
            self._response = self._writer.save_checkpointables_async(
                step,
                items,
                force=True,  # the caller decides when to save
                overwrite=overwrite,
                custom_metadata={"format_version": FORMAT_VERSION, "versions": versions, **metadata},
            )
        self._damaged.discard(step)  # Orbax has deleted it
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
            self._write_checksums(self._saving)
            self._write_index()

    def close(self) -> None:
        """Waits for the current save and ends the background threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _after_commit(self, step: int) -> None:
        # Runs in a background thread, where nobody could catch an error; `wait` repeats what failed.
        with contextlib.suppress(OSError):
            self._write_checksums(step)
            self._write_index()

    def _write_checksums(self, step: int) -> None:
        if jax.process_index() != 0:
            return
        with self._lock:
            # Only once: when a late thread gets here, the next save may already be deleting the directory.
            if step not in self._checksummed and is_complete(self.path(step)):
                write_checksums(self.path(step))
                self._checksummed.add(step)

    @contextlib.contextmanager
    def _storage_errors(self, step: int) -> Iterator[None]:
        """Converts errors of a full or unwritable disk to UserError, and deletes what was half-written."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = storage_error_reason(error)
            if reason is None:
                raise
            self._abandon(step)
            raise UserError(f"{self.directory}: cannot write the checkpoint of step {step}: {reason}") from error

    def _abandon(self, step: int) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError, ValueError):  # the same error again
            writer.close()
        # Orbax does not wait for its other threads when one has failed, so some may still be writing. The next run
        # deletes what they leave behind.
        for _ in range(5):
            for partial in self.directory.glob(f"{STEP_PREFIX}_{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            time.sleep(0.1)

    # --- which to keep --------------------------------------------------------------------------------

    def steps_to_keep(self, steps: Collection[int]) -> set[int]:
        """Returns the steps to keep: the latest, the best, multiples of `keep_every`; never damaged ones."""
        usable = sorted(s for s in steps if s == self._saving or self._is_usable(s))
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


class _Preservation:
    """Tells Orbax which checkpoints to keep.

    Orbax's own policies do not fit: BestN ranks by metrics given at the time of the save, while a validation loss may
    be known only later, and LatestN would count damaged checkpoints.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Returns for each checkpoint whether to keep it, as Orbax's interface requires."""
        keep = self._checkpoints.steps_to_keep([c.step for c in checkpoints])
        return [c.step in keep for c in checkpoints]
