"""Saving and restoring the whole training state, with Orbax.

A checkpoint is the directory ``step_<n>`` with the items ``params``, ``ema_params`` (optional), ``training``
(all other state), ``tokenizer`` (optional) and the metadata: config, format version, library versions. It is written
under a temporary name and renamed when complete, so that a kill at any moment leaves whole checkpoints only. Then its
``checksums.json`` is added, by which later damage is noticed. ``index.json`` beside the checkpoints names the last and
the best one and holds their validation losses.
"""

import contextlib
import logging
import os
import re
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
from psann_jax.train.checkpoint_index import CheckpointIndex
from psann_jax.train.compatibility import check_compatible
from psann_jax.train.orbax_behaviour import not_from_orbax, storage_reason, without_deadlines
from psann_jax.train.processes import from_leader, together
from psann_jax.utils.checksums import find_damage, write_checksums
from psann_jax.utils.errors import UserError

FORMAT_VERSION = 1
_PREFIX = "step"
_STEP_NAME = re.compile(rf"{_PREFIX}_(\d+)")
_WEIGHTS = ("params", "ema_params")  # parts of the state that are read without the others
_ITEM_NAMES = {
    "params": "parameters",
    "ema_params": "EMA parameters",
    "training": "optimizer or other training state",
}
_DAMAGED = "the checkpoint is damaged; remove it to go on from the one before"


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run.

    Nothing is created or changed before the first `save`, so a directory that another process is writing, or that
    is read-only, can be read from. Where several processes train together, all of them call `save`, `wait` and
    `restore` with the same arguments; the directory must be one that all of them see.
    """

    def __init__(self, directory: str | Path, config: CheckpointConfig) -> None:
        """Looks at what is there.

        Args:
          directory: where the checkpoints are or will be.
          config: which of them to keep.

        Raises:
          UserError: the name of the directory cannot be used in this locale.
        """
        self.directory = Path(directory).absolute()
        try:
            str(self.directory).encode()
        except UnicodeEncodeError as error:  # TensorStore cannot open it, and its error does not say so
            raise UserError(
                f"{os.fsencode(self.directory)!r}: a name that is not ASCII cannot be used in this locale; "
                "set PYTHONUTF8=1 or choose another directory"
            ) from error
        self._config = config
        self._writer: ocp.training.Checkpointer | None = None
        self._response: ocp.AsyncResponse[bool] | None = None
        self._saving: int | None = None
        self._lock = threading.Lock()
        self._checksummed: set[int] = set()
        self._sound: set[int] = set()  # verified as a whole
        self._damaged: set[int] = set()
        self._index = CheckpointIndex(self.directory)
        logging.getLogger("absl").addFilter(not_from_orbax)

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what there is --------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending.

        One that is still being written does not count, nor one that `newest_sound` has found damaged.
        """
        if not self.directory.is_dir():
            return []
        matches = (_STEP_NAME.fullmatch(p.name) for p in self.directory.iterdir())
        steps = sorted(int(m[1]) for m in matches if m)
        return [s for s in steps if self._counts(s)]

    def _counts(self, step: int) -> bool:
        return step not in self._damaged and _is_complete(self.path(step))

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def newest_sound(self) -> tuple[int | None, list[str]]:
        """The step of the newest checkpoint whose files are as they were written, to go on from.

        All files of that checkpoint are read, once; process 0 does it for all. Newer ones are damaged and do not
        count from now on: a save of the same step replaces one, and the next save of any step removes it.

        Returns:
          The step, None if there is no checkpoint; and a line about each newer one.

        Raises:
          UserError: all checkpoints are damaged.
        """
        found, damaged = from_leader(self._look_for_damage() if jax.process_index() == 0 else None)
        with together():
            if damaged and found is None:
                newest, reason = damaged[0]
                others = ", and so are all before it" if len(damaged) > 1 else "; there is no other"
                raise UserError(
                    f"{self.path(newest)}: damaged ({reason}){others}; put a sound one back from a copy, "
                    f"or remove {self.directory} to begin again"
                )
        self._damaged.update(step for step, _ in damaged)
        if found is not None:
            self._sound.add(found)
        return found, [f"{self.path(s)}: damaged ({reason}); going on from step {found}" for s, reason in damaged]

    def _look_for_damage(self) -> tuple[int | None, list[tuple[int, str]]]:
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            reason = find_damage(self.path(step))
            if reason is None:
                return step, damaged
            damaged.append((step, reason))
        return None, damaged

    def best(self) -> int | None:
        """The step with the lowest validation loss; None if no checkpoint has one."""
        return self._index.best(self.steps())

    def path(self, step: int) -> Path:
        """The directory of one checkpoint."""
        return self.directory / f"{_PREFIX}_{step}"

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given as `metadata`, with "format_version" and the library "versions".

        Raises:
          UserError: no such checkpoint, or one of a newer format.
        """
        return dict(self._read_metadata(step).custom_metadata)

    def tokenizer(self, step: int) -> bytes:
        """The tokenizer file that the checkpoint was saved with.

        Raises:
          UserError: no such checkpoint, or one without a tokenizer.
        """
        if "tokenizer" not in self._read_metadata(step).metadata:
            raise UserError(f"{self.path(step)}: the checkpoint holds no tokenizer")
        self._verify(step, ["tokenizer"])
        loaded = self._load(step, {"tokenizer": None})
        return np.asarray(loaded["tokenizer"]["bytes"]).tobytes()

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
        """Saves in the background, after a save under way has ended; the arrays may be donated at once.

        A step that is already saved is not written again; its metrics are brought up to date, which is how a loss
        that is known only after the save gets in.

        Args:
          step: number of updates done.
          state: dict of pytrees of arrays with the key "params" and others.
          metadata: a JSON-like dict, at least {"config": ...}.
          metrics: a finite "val_loss" makes the checkpoint a candidate for the best one.
          tokenizer: the tokenizer file.
          final: return only when the checkpoint is on disk.

        Raises:
          UserError: the directory cannot be written, now or in the save before.
        """
        self.wait()
        if metrics is not None:
            self._index.record(step, metrics)
        exists = self.path(step).exists()
        complete, damaged = from_leader([step in self.steps(), exists and step not in self.steps()])
        # This also finds an unwritable directory before Orbax has started its threads, which would hang for minutes.
        with self._storage_errors(step):
            self._write_index()
        if not complete:
            self._start(step, state, metadata, tokenizer, overwrite=damaged)
        if final:
            self.wait()

    def _start(
        self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any], tokenizer: bytes | None, overwrite: bool
    ) -> None:
        items = _items(state)
        # Orbax raises too, but leaves threads behind that hang for minutes.
        if not (items.get("params") and items.get("training")):
            raise ValueError('the state must hold "params" and more, at least the step')
        if tokenizer is not None:
            items["tokenizer"] = {"bytes": np.frombuffer(tokenizer, np.uint8)}
        versions = {name: packages.version(name) for name in ("psann_jax", "jax", "flax", "optax", "orbax-checkpoint")}
        self._saving = step
        self._sound.discard(step)
        self._checksummed.discard(step)
        with self._storage_errors(step):
            if self._writer is None:
                self._writer = ocp.training.Checkpointer(
                    self.directory,
                    context=without_deadlines(),
                    preservation_policy=_Preservation(self),
                    step_name_format=ocp.path.step.standard_name_format(step_prefix=_PREFIX),
                    cleanup_tmp_directories=True,
                )
            self._response = self._writer.save_checkpointables_async(
                step,
                items,
                force=True,  # when to save is the caller's decision
                overwrite=overwrite,
                custom_metadata={"format_version": FORMAT_VERSION, "versions": versions, **metadata},
            )
        self._damaged.discard(step)  # Orbax has deleted it
        assert self._response is not None
        self._response.on_complete(lambda _: self._after_commit(step))

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk.

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
        """Waits for the save under way and ends the background threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _after_commit(self, step: int) -> None:
        # In a background thread, where nobody could catch an error; `wait` does both again where it failed.
        with contextlib.suppress(OSError):
            self._write_checksums(step)
            self._write_index()

    def _write_checksums(self, step: int) -> None:
        if jax.process_index() != 0:
            return
        with self._lock:
            # Not again by a thread that comes late: by then the next save may be removing the directory.
            if step not in self._checksummed and _is_complete(self.path(step)):
                write_checksums(self.path(step))
                self._checksummed.add(step)

    @contextlib.contextmanager
    def _storage_errors(self, step: int) -> Iterator[None]:
        """Turns the errors of a full or unwritable disk into a UserError, and frees what was half-written."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = storage_reason(error)
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
        # Orbax does not wait for its other threads when one has failed, so some may still be writing. What they
        # leave in spite of this is removed by the next run.
        for _ in range(5):
            for partial in self.directory.glob(f"{_PREFIX}_{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            time.sleep(0.1)

    # --- which to keep --------------------------------------------------------------------------------

    def kept(self, steps: Collection[int]) -> set[int]:
        """Those of the given steps that are worth keeping: the latest, the best, multiples of `keep_every`."""
        whole = sorted(s for s in steps if s == self._saving or self._counts(s))
        kept = set(whole[-self._config.keep :])
        best = self._index.best(whole)
        if best is not None:
            kept.add(best)
        if self._config.keep_every:
            kept.update(s for s in whole if s % self._config.keep_every == 0)
        return kept

    def _write_index(self) -> None:
        if jax.process_index() == 0:
            with self._lock:
                self._index.write(self.steps())

    # --- restoring ------------------------------------------------------------------------------------

    def restore(self, step: int, abstract_state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a checkpoint, read straight onto the given shardings.

        Args:
          step: a step in `steps()`.
          abstract_state: dict of pytrees of `jax.ShapeDtypeStruct` with shardings, of any mesh. Either the whole
            state or only "params" or "ema_params", then nothing else is read.

        Raises:
          UserError: no such checkpoint, a damaged one, or one that does not fit `abstract_state`.
        """
        wanted = _items(abstract_state)
        self._verify(step, wanted)
        saved = self._read_metadata(step, *wanted).metadata
        for item in wanted:
            check_compatible(saved[item], wanted[item], f"{self.path(step)}: {_ITEM_NAMES[item]}")
        loaded = self._load(step, wanted)
        training = loaded.pop("training", {})
        return loaded | training

    def _verify(self, step: int, items: Collection[str]) -> None:
        """Raises UserError if a file of these items is damaged; of the others nothing is read."""
        if step in self._sound:
            return
        reason = from_leader(find_damage(self.path(step), items) if jax.process_index() == 0 else None)
        with together():
            if reason:
                raise UserError(f"{self.path(step)}: {_DAMAGED} ({reason})")

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(ocp.load_checkpointables(self.path(step), wanted))
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UserError(f"{self.path(step)}: {_DAMAGED} ({reason})") from error

    def _read_metadata(self, step: int, *items: str) -> Any:
        """What Orbax knows of a checkpoint, where at least the metadata of `items` must be sound."""
        if step not in self.steps():
            raise UserError(f"{self.path(step)}: no such checkpoint; there are {self.steps() or 'none'}")
        damaged = f"{self.path(step)}: {_DAMAGED}"
        reason = find_damage(self.path(step), ())
        if reason:
            raise UserError(f"{damaged} ({reason})")
        try:
            found = ocp.checkpointables_metadata(self.path(step))
        except (OSError, ValueError) as error:
            raise UserError(damaged) from error
        # Orbax passes over what it cannot read, so look for what every checkpoint has.
        if "format_version" not in (found.custom_metadata or {}) or any(found.metadata.get(i) is None for i in items):
            raise UserError(damaged)
        version = found.custom_metadata["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(f"{self.path(step)}: has format {version}, but this psann_jax reads up to {FORMAT_VERSION}")
        return found


def _items(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state by the items of a checkpoint."""
    items = {name: state[name] for name in _WEIGHTS if name in state}
    rest = {name: value for name, value in state.items() if name not in _WEIGHTS}
    return items | ({"training": rest} if rest else {})


class _Preservation:
    """What Orbax may delete after a save, in the form that it asks in."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        kept = self._checkpoints.kept([c.step for c in checkpoints])
        return [c.step in kept for c in checkpoints]


def _is_complete(path: Path) -> bool:
    """Whether nothing is missing that a half-deleted or half-copied checkpoint might lack."""
    items = [path / "params", path / "training"]
    files = [path / "_CHECKPOINT_METADATA", *(i / n for i in items for n in ("_METADATA", "manifest.ocdbt"))]
    return all(f.is_file() for f in files)
