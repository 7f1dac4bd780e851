"""Lists, verifies and restores the checkpoints of a run; changes nothing on disk."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from psann_jax.train.checkpoint_format import (
    FORMAT_VERSION,
    ITEM_TITLES,
    METADATA,
    STEP_PREFIX,
    from_stored,
    is_complete,
    names_in_any_version,
    split_items,
    step_of,
    stored_items,
    stored_name,
    to_stored,
)
from psann_jax.train.checkpoint_index import CheckpointIndex
from psann_jax.train.compatibility import check_compatible
from psann_jax.train.orbax_workarounds import find_unreadable, silence_orbax_log
from psann_jax.train.processes import broadcast_from_leader, raise_together
from psann_jax.utils.checksums import CHECKSUMS, find_damage
from psann_jax.utils.errors import UserError

_DAMAGED = "the checkpoint is damaged; remove it to continue from the one before"


class CheckpointReader:
    """Read access to the checkpoints of one run.

    The directory may be read-only, or another process may be writing to it. If several processes train together, all
    of them call `newest_intact` and `restore` with the same arguments, and all see the same directory.
    """

    def __init__(self, directory: str | Path) -> None:
        """Opens the directory, which need not exist.

        Raises:
          UserError: the name of the directory cannot be used in this locale.
        """
        self.directory = Path(directory).absolute()
        try:
            str(self.directory).encode()
        except UnicodeEncodeError as error:  # TensorStore cannot open it, and its error does not say why
            raise UserError(
                f"{os.fsencode(self.directory)!r}: a name that is not ASCII cannot be used in this locale; "
                "set PYTHONUTF8=1 or choose another directory"
            ) from error
        self._intact: set[int] = set()  # all files verified
        self._damaged: set[int] = set()
        self._index = CheckpointIndex(self.directory)
        silence_orbax_log()

    # --- listing --------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending.

        Checkpoints that are still being written and those that `newest_intact` found damaged are skipped.
        """
        if not self.directory.is_dir():
            return []
        steps = (step_of(path.name) for path in self.directory.iterdir())
        return sorted(s for s in steps if s is not None and self._is_usable(s))

    def _is_usable(self, step: int) -> bool:
        return step not in self._damaged and is_complete(self.path(step))

    def path(self, step: int) -> Path:
        """Returns the directory of one checkpoint."""
        return self.directory / f"{STEP_PREFIX}_{step}"

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the lowest validation loss; None if no checkpoint has one."""
        return self._index.best(self.steps())

    def newest_intact(self) -> tuple[int | None, list[str]]:
        """Finds the newest checkpoint whose files match their checksums.

        Process 0 reads all files of that checkpoint, once, for all processes. One without checksums, as a kill at the
        wrong moment leaves it, counts as intact if its arrays can be read. Newer checkpoints are damaged; from now
        on they are skipped, a save of the same step replaces them, and the next save of any step deletes them.

        Returns:
          The step, None if there is no checkpoint, and one line about each newer, damaged one.

        Raises:
          UserError: all checkpoints are damaged.
        """
        found, damaged = broadcast_from_leader(self._find_intact() if jax.process_index() == 0 else None)
        with raise_together():
            if damaged and found is None:
                newest, reason = damaged[0]
                others = ", and so are all before it" if len(damaged) > 1 else "; there is no other"
                raise UserError(
                    f"{self.path(newest)}: damaged ({reason}){others}; restore an intact one from a copy, "
                    f"or remove {self.directory} to start again"
                )
        self._damaged.update(step for step, _ in damaged)
        if found is not None:
            self._intact.add(found)
        return found, [f"{self.path(s)}: damaged ({reason}); resuming from step {found}" for s, reason in damaged]

    def _find_intact(self) -> tuple[int | None, list[tuple[int, str]]]:
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            reason = find_damage(path) if (path / CHECKSUMS).exists() else find_unreadable(path, stored_items(path))
            if reason is None:
                return step, damaged
            damaged.append((step, reason))
        return None, damaged

    # --- reading --------------------------------------------------------------------------------------

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata given to `save`, with "format_version" and the library "versions".

        Raises:
          UserError: no such checkpoint, a damaged one, or one of a newer format.
        """
        if step not in self.steps():
            raise UserError(f"{self.path(step)}: no such checkpoint; there are {self.steps() or 'none'}")
        damaged = f"{self.path(step)}: {_DAMAGED}"
        reason = find_damage(self.path(step), ())
        if reason:
            raise UserError(f"{damaged} ({reason})")
        # Orbax would open every array for it, which takes longer than all else that opening a small run does. If one is
        # damaged, it leaves the others' reads behind, and their ends in a closed event loop print tracebacks.
        try:
            content = json.loads((self.path(step) / METADATA).read_bytes())
            found: dict[str, Any] = content["custom_metadata"]
            version = found["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(damaged) from error
        if version > FORMAT_VERSION:
            raise UserError(f"{self.path(step)}: has format {version}, but this psann_jax reads up to {FORMAT_VERSION}")
        return found

    def tokenizer(self, step: int) -> bytes:
        """Returns the tokenizer file that was saved with the checkpoint.

        Each process verifies it alone, so that only some of them may call this.

        Raises:
          UserError: no such checkpoint, a damaged one, or one without a tokenizer.
        """
        self.metadata(step)  # checks that the checkpoint can be read at all
        if not (self.path(step) / "tokenizer").is_dir():
            raise UserError(f"{self.path(step)}: the checkpoint holds no tokenizer")
        reason = None if step in self._intact else find_damage(self.path(step), ["tokenizer"])
        if reason:
            raise UserError(f"{self.path(step)}: {_DAMAGED} ({reason})")
        loaded = self._load(step, {"tokenizer": None})
        return np.asarray(loaded["tokenizer"]["bytes"]).tobytes()

    def restore(self, step: int, abstract_state: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the state of a checkpoint directly onto the given shardings.

        Args:
          step: a step in `steps()`.
          abstract_state: dict of pytrees of `jax.ShapeDtypeStruct` with shardings, on any mesh: the whole state, or
            only "params" or "ema_params"; then nothing else is read.

        Raises:
          UserError: no such checkpoint, a damaged one, or one that does not fit `abstract_state`.
        """
        wanted = split_items(abstract_state)
        self._verify(step, names_in_any_version(wanted))
        metadata = self.metadata(step)
        try:
            arrays = ocp.checkpointables_metadata(self.path(step)).metadata
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path(step)}: {_DAMAGED}") from error
        version = metadata["format_version"]
        base = str(metadata.get("config", {}).get("model", {}).get("base"))
        names = {item: stored_name(item, version) for item in wanted}
        stored = {names[item]: to_stored(tree, base, version) for item, tree in wanted.items()}
        for item, name in names.items():
            if arrays.get(name) is None:  # Orbax skips what it cannot read
                raise UserError(f"{self.path(step)}: {_DAMAGED}")
            check_compatible(arrays[name], stored[name], f"{self.path(step)}: {ITEM_TITLES[item]}")
        loaded = self._load(step, stored)
        state = {item: from_stored(loaded[name], base, version) for item, name in names.items()}
        training = state.pop("training", {})
        return state | training

    def _verify(self, step: int, items: Collection[str]) -> None:
        """Raises UserError if a file of these items is damaged; the files of other items are not read."""
        if step in self._intact:
            return
        reason = broadcast_from_leader(find_damage(self.path(step), items) if jax.process_index() == 0 else None)
        with raise_together():
            if reason:
                raise UserError(f"{self.path(step)}: {_DAMAGED} ({reason})")

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(ocp.load_checkpointables(self.path(step), wanted))
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UserError(f"{self.path(step)}: {_DAMAGED} ({reason})") from error
