"""Layout and version of a checkpoint directory.

``step_<n>/`` holds the items ``params``, ``ema_params`` (optional), ``training`` (all other state) and ``tokenizer``
(optional), metadata (config, data fingerprint, format version, library versions) and ``checksums.json``.

Versions:
  1: psann_jax 0.1. The item ``ema_params`` was called ``averaged``. The config had older key names, which
    `psann_jax.config.io.upgrade_saved` maps to the current ones.
  2: current.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = 2
STEP_PREFIX = "step"
WEIGHTS = ("params", "ema_params")  # parts of the state that can be read without the others
ITEM_TITLES = {
    "params": "parameters",
    "ema_params": "EMA parameters",
    "training": "optimizer or other training state",
}
_STEP_DIRECTORY = re.compile(rf"{STEP_PREFIX}_(\d+)")
_ITEM_NAMES_IN_VERSION_1 = {"ema_params": "averaged"}


def step_of(directory_name: str) -> int | None:
    """Returns the step of a checkpoint directory, None for other names."""
    match = _STEP_DIRECTORY.fullmatch(directory_name)
    return int(match[1]) if match else None


def split_items(state: Mapping[str, Any]) -> dict[str, Any]:
    """Groups the entries of a state by item."""
    items = {name: state[name] for name in WEIGHTS if name in state}
    rest = {name: value for name, value in state.items() if name not in WEIGHTS}
    return items | ({"training": rest} if rest else {})


def stored_name(item: str, version: int) -> str:
    """Returns the name that an item has on disk in a format version."""
    return _ITEM_NAMES_IN_VERSION_1.get(item, item) if version < 2 else item


def names_in_any_version(items: Iterable[str]) -> set[str]:
    """Returns the names that items have on disk in all versions."""
    return {stored_name(item, version) for item in items for version in range(1, FORMAT_VERSION + 1)}


def is_complete(path: Path) -> bool:
    """Returns whether a checkpoint has all files that a half-deleted or half-copied one might lack."""
    items = [path / "params", path / "training"]
    files = [path / "_CHECKPOINT_METADATA", *(i / n for i in items for n in ("_METADATA", "manifest.ocdbt"))]
    return all(f.is_file() for f in files)
