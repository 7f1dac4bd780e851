"""Conversion of a PyTorch model's flat state dict to nested parameters, by a table of names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from psann_jax.config import require
from psann_jax.convert.weights import flat_params

# Their name -> our dotted path, and the function that converts the array.
Table = dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def identity(a: np.ndarray) -> np.ndarray:
    """Returns the array unchanged."""
    return a


def transpose(a: np.ndarray) -> np.ndarray:
    """Transposes a Linear weight: (out, in) in PyTorch, (in, out) here."""
    return a.T


@dataclass(frozen=True)
class Renaming:
    """The names of one PyTorch project.

    Attributes:
      origin: name of the project, for messages.
      blocks: prefix of the parameters in blocks, before the block's number.
      top: table of the parameters outside blocks.
      block: table of the parameters in a block, without prefix and number.
    """

    origin: str
    blocks: str
    top: Table
    block: Table

    def nested(self, arrays: Mapping[str, np.ndarray], n_layers: int) -> dict[str, Any]:
        """Returns nested parameters with those of the blocks stacked; gradients are converted the same way.

        Args:
          arrays: arrays by their names.
          n_layers: expected number of blocks.

        Raises:
          ConfigError: a parameter has no counterpart here, or the blocks are not numbered 0 to n_layers - 1.
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
            require(
                sorted(by_layer) == list(range(n_layers)),
                "model.n_layers",
                f"is {n_layers}, but {path} is in {len(by_layer)} blocks",
            )
            flat[path] = np.stack([by_layer[i] for i in range(n_layers)])
        nested: dict[str, Any] = {}
        for path, value in flat.items():
            *parents, leaf = path.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = np.ascontiguousarray(value)
        return nested

    def flat(self, params: Mapping[str, Any], n_layers: int) -> dict[str, np.ndarray]:
        """Returns arrays by their names, the inverse of `nested` if the functions in the tables are inverted.

        Args:
          params: nested parameters; names in the tables that they do not have are left out.
          n_layers: number of blocks.

        Raises:
          ConfigError: a parameter has no name in the tables.
        """
        ours = flat_params(dict(params))
        arrays = {name: convert(ours.pop(path)) for name, (path, convert) in self.top.items() if path in ours}
        for name, (path, convert) in self.block.items():
            stacked = ours.pop(f"blocks.{path}", None)
            if stacked is not None:
                arrays |= {f"{self.blocks}.{i}.{name}": convert(stacked[i]) for i in range(n_layers)}
        require(not ours, "model", f"{self.origin} has no counterpart of {', '.join(ours)}")
        return {name: np.ascontiguousarray(a) for name, a in arrays.items()}
