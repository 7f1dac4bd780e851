"""Checks that given parameters or states have the structure, shapes and types that a config needs."""

from typing import Any

import jax
import numpy as np

from psann_jax.utils.errors import UserError

_REPORTED_DIFFERENCES = 10


def check_compatible(saved: Any, expected: Any, what: str) -> None:
    """Checks that two pytrees have the same paths, shapes and types.

    Args:
      saved: pytree of arrays, or of anything with shape and dtype, as given or saved.
      expected: the same as the config makes it.
      what: names `saved` in the first line of the message.

    Raises:
      UserError: they differ; the message lists the differences.
    """
    ours, theirs = _describe(expected), _describe(saved)
    differences = []
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs:
            differences.append(f"{path}: missing, must be {ours[path]}")
        elif path not in ours:
            differences.append(f"{path}: is {theirs[path]}, which the config does not have")
        elif ours[path] != theirs[path]:
            differences.append(f"{path}: is {theirs[path]}, must be {ours[path]}")
    if differences:
        shown = differences[:_REPORTED_DIFFERENCES]
        more = len(differences) - len(shown)
        lines = [f"{what} do not fit the config", *shown, *([f"and {more} more"] if more else [])]
        raise UserError("\n  ".join(lines))


def _describe(tree: Any) -> dict[str, str]:
    """Maps the path of every array to "dtype[shape]"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in leaves
    }
