"""Layout and version of a checkpoint directory.

``step_<n>/`` holds the items ``params``, ``ema_params`` (optional), ``training`` (all other state) and ``tokenizer``
(optional), metadata (config, data fingerprint, format version, library versions) and ``checksums.json``.

Versions:
  1: psann_jax 0.1. The item ``ema_params`` was called ``averaged``. The blocks of base sudoku had the parameters of
    their attention and MLP beside each other. The config had older key names, which
    `psann_jax.config.io.upgrade_saved` maps to the current ones.
  2: current.
"""

import contextlib
import json
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from psann_jax.utils.checksums import CHECKSUMS, write_checksums

FORMAT_VERSION = 2
STEP_PREFIX = "step"
WEIGHTS = ("params", "ema_params")  # parts of the state that can be read without the others
ITEM_TITLES = {
    "params": "parameters",
    "ema_params": "EMA parameters",
    "training": "optimizer or other training state",
}
METADATA = "_CHECKPOINT_METADATA"
_STEP_DIRECTORY = re.compile(rf"{STEP_PREFIX}_(\d+)")
_ITEM_NAMES_IN_VERSION_1 = {"ema_params": "averaged"}
_SUDOKU_MODULES = {"attn": ("q", "k", "v", "o"), "mlp": ("fc1", "fc2", "act")}  # not in version 1


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


def to_stored(tree: Any, base: str, version: int) -> Any:
    """Returns an item of a state with the structure that it has on disk in a format version."""
    if base != "sudoku" or version >= 2:
        return tree

    def flatten(blocks: dict[str, Any]) -> dict[str, Any]:
        inner = [blocks[module] for module in _SUDOKU_MODULES]
        rest = {name: value for name, value in blocks.items() if name not in _SUDOKU_MODULES}
        return {**rest, **{name: value for part in inner for name, value in part.items()}}

    return _change_blocks(tree, flatten)


def from_stored(tree: Any, base: str, version: int) -> Any:
    """The inverse of `to_stored`."""
    if base != "sudoku" or version >= 2:
        return tree

    def nest(blocks: dict[str, Any]) -> dict[str, Any]:
        rest = dict(blocks)
        modules = {
            module: {name: rest.pop(name) for name in names if name in rest}
            for module, names in _SUDOKU_MODULES.items()
        }
        return {**rest, **modules}

    return _change_blocks(tree, nest)


def _change_blocks(tree: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Applies `change` to the blocks in every dict of parameters, optimizer moments and the like."""

    def has_blocks(x: Any) -> bool:
        return isinstance(x, dict) and "blocks" in x

    return jax.tree.map(
        lambda x: {**x, "blocks": change(x["blocks"])} if has_blocks(x) else x, tree, is_leaf=has_blocks
    )


def missing_files(path: Path) -> list[str]:
    """Returns the files that every complete checkpoint has and this one lacks, relative to its directory.

    Raises:
      OSError: that cannot be told, for example for lack of permission.
    """
    names = [METADATA, *(f"{item}/{name}" for item in stored_items(path) for name in ("_METADATA", "manifest.ocdbt"))]
    return [name for name in names if not _is_file(path / name)]


def is_complete(path: Path) -> bool:
    """Returns whether a checkpoint has all files that a half-deleted or half-copied one might lack."""
    try:
        return not missing_files(path)
    except OSError:
        return False


def add_checksums(path: Path) -> None:
    """Writes the checksums of a complete checkpoint that has none yet.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    if is_complete(path) and not (path / CHECKSUMS).exists():
        write_checksums(path)


def stored_items(path: Path) -> set[str]:
    """Returns the names of a checkpoint's items on disk, those that all have if its metadata cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return {"params", "training", *json.loads((path / METADATA).read_bytes())["item_handlers"]}
    return {"params", "training"}


def _is_file(path: Path) -> bool:
    # Not Path.is_file, which from Python 3.14 on returns False whatever the error.
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
