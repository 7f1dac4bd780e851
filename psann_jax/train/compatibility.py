"""Whether saved parameters or states fit a config."""

from typing import Any

import jax
import numpy as np

from psann_jax.utils.errors import UserError

_REPORTED_DIFFERENCES = 10


def check_compatible(saved: Any, expected: Any, what: str) -> None:
    """Raises a UserError that lists what differs between a checkpoint and the config's state.

    Args:
      saved: pytree of arrays, or of their descriptions with shape and dtype, as in the checkpoint.
      expected: the same as the config makes it.
      what: the checkpoint and its part, for the first line of the message.
    """
    ours, theirs = _describe(expected), _describe(saved)
    differences = []
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs:
            differences.append(f"{path}: missing in the checkpoint, config {ours[path]}")
        elif path not in ours:
            differences.append(f"{path}: checkpoint {theirs[path]}, unknown to the config")
        elif ours[path] != theirs[path]:
            differences.append(f"{path}: checkpoint {theirs[path]}, config {ours[path]}")
    if differences:
        shown = differences[:_REPORTED_DIFFERENCES]
        more = len(differences) - len(shown)
        lines = [f"{what} do not fit the config", *shown, *([f"and {more} more"] if more else [])]
        raise UserError("\n  ".join(lines))


def _describe(tree: Any) -> dict[str, str]:
    """Path -> "dtype[shape]" of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in leaves
    }
