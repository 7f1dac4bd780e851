"""``index.json`` beside the checkpoints: the last one, the best one, and their validation losses."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from psann_jax.utils.files import atomic_write

INDEX = "index.json"


class CheckpointIndex:
    """Metrics of the checkpoints of a run. The file may be missing; then no checkpoint counts as the best."""

    def __init__(self, directory: Path):
        """Reads the index of a directory of checkpoints, if it has one."""
        self._directory = directory
        self._metrics = self._read()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stores the finite metrics of a checkpoint, in memory; `write` saves them."""
        self._metrics[step] = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}

    def best(self, steps: Collection[int]) -> int | None:
        """Returns the step with the lowest validation loss, the first of equals; None if no step has one."""
        losses = {s: self._metrics[s]["val_loss"] for s in steps if "val_loss" in self._metrics.get(s, {})}
        return min(losses, key=lambda s: (losses[s], s), default=None)

    def write(self, steps: Collection[int]) -> None:
        """Writes the file atomically, with the entries of the given steps only.

        Raises:
          OSError: it cannot be written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        index = {
            "last": max(steps, default=None),
            "best": self.best(steps),
            "metrics": {str(s): self._metrics[s] for s in steps if s in self._metrics},
        }
        atomic_write(self._directory / INDEX, json.dumps(index, indent=2) + "\n")

    def _read(self) -> dict[int, dict[str, float]]:
        try:
            index = json.loads((self._directory / INDEX).read_text())
            return {int(step): metrics for step, metrics in index["metrics"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return {}
