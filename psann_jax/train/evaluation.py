"""Sums over the batches of an evaluation, and the losses of its single windows, which the workdir keeps."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors

WINDOWS = "valid_windows.npz"
# Statistics of an evaluation step that have one value per row of the batch.
NLL_ROWS, WEIGHT_ROWS = "nll_B", "weight_B"


@dataclass(frozen=True)
class WindowLosses:
    """The losses of a run by validation window (by puzzle, for Sudoku), in the order of the validation set.

    Attributes:
      nll_W: sum of the cross entropy over the targets of each window, in nats, (W,).
      weight_W: number of targets of each window, (W,).
      step: number of updates before the evaluation.
      data: fingerprint of the data that the windows are of.
    """

    nll_W: np.ndarray
    weight_W: np.ndarray
    step: int
    data: str = ""

    def write(self, workdir: Path) -> None:
        """Writes the file `WINDOWS` of a workdir.

        Raises:
          UserError: it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, nll=self.nll_W, weight=self.weight_W, step=np.int64(self.step), data=self.data)
        path = workdir / WINDOWS
        with storage_errors(path):
            atomic_write(path, buffer.getvalue())

    @classmethod
    def read(cls, workdir: Path) -> "WindowLosses | None":
        """Reads the file `WINDOWS` of a workdir; None if there is none.

        Raises:
          UserError: it is damaged.
        """
        path = workdir / WINDOWS
        if not path.exists():
            return None
        try:
            with storage_errors(path, "read"), np.load(path, allow_pickle=False) as arrays:
                found = cls(arrays["nll"], arrays["weight"], int(arrays["step"]), str(arrays["data"]))
        except UserError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise UserError(f"{path}: is damaged ({error}); delete it") from error
        if found.nll_W.ndim != 1 or found.nll_W.shape != found.weight_W.shape:
            raise UserError(f"{path}: is damaged (its arrays do not match); delete it")
        return found


class EvaluationSums:
    """Adds up what the evaluation step returns for each batch.

    Attributes:
      totals: name -> sum over all batches so far.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self._rows: dict[str, list[np.ndarray]] = {NLL_ROWS: [], WEIGHT_ROWS: []}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Adds the host arrays of one batch: scalars, and possibly `NLL_ROWS` and `WEIGHT_ROWS`, (B,)."""
        for name, value in sums.items():
            if name in self._rows:
                self._rows[name].append(np.asarray(value))
            else:
                self.totals[name] = self.totals.get(name, 0.0) + float(value)

    def windows(self, step: int, data: str) -> WindowLosses | None:
        """Returns the losses by window, without the padding rows at the end; None if the task reports none."""
        if not all(self._rows.values()):
            return None
        nll_W, weight_W = (np.concatenate(self._rows[name]) for name in (NLL_ROWS, WEIGHT_ROWS))
        n = int(np.max(np.flatnonzero(weight_W), initial=-1)) + 1
        return WindowLosses(nll_W[:n], weight_W[:n], step, data)
