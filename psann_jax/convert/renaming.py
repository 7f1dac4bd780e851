"""From the flat state dict of a PyTorch model to our nested parameters, by a table of names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from psann_jax.config import require

Table = dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def same(a: np.ndarray) -> np.ndarray:
    """An array as it is."""
    return a


def transpose(a: np.ndarray) -> np.ndarray:
    """PyTorch's Linear weights are (out, in)."""
    return a.T


@dataclass(frozen=True)
class Renaming:
    """Their name -> (path in our tree, how their array becomes ours).

    Attributes:
      origin: whose names they are, for messages.
      blocks: what the names of a block's parameters begin with, before the layer's number.
      top: names outside of blocks.
      block: names in a block, without blocks and number.
    """

    origin: str
    blocks: str
    top: Table
    block: Table

    def nested(self, arrays: Mapping[str, np.ndarray], n_layers: int) -> dict[str, Any]:
        """Our nested parameters, those of blocks stacked; gradients map the same way.

        Args:
          arrays: their names to arrays.
          n_layers: blocks that there must be.

        Raises:
          ConfigError: a name that no model here has, or blocks that do not fit n_layers.
        """
        flat: dict[str, Any] = {}
        layers: dict[str, dict[int, np.ndarray]] = {}
        for name, array in arrays.items():
            match = re.fullmatch(rf"{self.blocks}\.(\d+)\.(.+)", name)
            table, key = (self.block, match[2]) if match else (self.top, name)
            require(key in table, "model", f"{self.origin} parameter {name!r} has no counterpart")
            path, convert = table[key]
            if match:
                layers.setdefault(f"blocks.{path}", {})[int(match[1])] = convert(array)
            else:
                flat[path] = convert(array)
        for path, by_layer in layers.items():
            require(sorted(by_layer) == list(range(n_layers)), "model.n_layers", f"is {n_layers}, {path} not")
            flat[path] = np.stack([by_layer[i] for i in range(n_layers)])
        nested: dict[str, Any] = {}
        for path, value in flat.items():
            *parents, leaf = path.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = np.ascontiguousarray(value)
        return nested
