"""Sums over the batches of an evaluation, and the losses of its single windows, which the workdir keeps."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.train.loss_parts import LossParts, TargetParts, rows_by_part
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors

WINDOWS = "valid_windows.npz"
# Statistics of an evaluation step that have one value per row of the batch.
NLL_ROWS, WEIGHT_ROWS = "nll_B", "weight_B"
NLL_TOKENS = "nll_BxL"  # the cross entropy of every token
_NAMES, _NLL, _WEIGHT = "names", "nll", "weight"  # of the arrays of one kind of parts, after the kind and a dot


@dataclass(frozen=True)
class WindowLosses:
    """The losses of a run by validation window (by puzzle, for Sudoku), in the order of the validation set.

    Attributes:
      nll_W: sum of the cross entropy over the targets of each window, in nats, (W,).
      weight_W: number of targets of each window, (W,).
      step: number of updates before the evaluation.
      data: fingerprint of the data that the windows are of.
      parts: losses by part of the data and window, by kind: "position" and "source" for text; {} if there are none.
    """

    nll_W: np.ndarray
    weight_W: np.ndarray
    step: int
    data: str = ""
    parts: Mapping[str, LossParts] = field(default_factory=dict)

    def write(self, workdir: Path) -> None:
        """Writes the file `WINDOWS` of a workdir.

        Raises:
          UserError: it cannot be written.
        """
        arrays: dict[str, Any] = {"nll": self.nll_W, "weight": self.weight_W, "step": np.int64(self.step)}
        for kind, parts in self.parts.items():
            found = (parts.names, parts.nll_WxP.astype(np.float32), parts.weight_WxP.astype(np.float32))
            arrays |= {f"{kind}.{name}": array for name, array in zip((_NAMES, _NLL, _WEIGHT), found, strict=True)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, data=self.data, **arrays)
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
                kinds = [key.removesuffix(f".{_NAMES}") for key in arrays if key.endswith(f".{_NAMES}")]
                parts = {kind: _read_parts(arrays, kind) for kind in kinds}
                found = cls(arrays["nll"], arrays["weight"], int(arrays["step"]), str(arrays["data"]), parts)
        except UserError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise UserError(f"{path}: is damaged ({error}); delete it") from error
        shape_W = found.nll_W.shape
        of_parts = [{p.nll_WxP.shape, p.weight_WxP.shape} == {(*shape_W, len(p.names))} for p in parts.values()]
        if len(shape_W) != 1 or found.weight_W.shape != shape_W or not all(of_parts):
            raise UserError(f"{path}: is damaged (its arrays do not match); delete it")
        return found


def _read_parts(arrays: Mapping[str, np.ndarray], kind: str) -> LossParts:
    names, nll_WxP, weight_WxP = (arrays[f"{kind}.{name}"] for name in (_NAMES, _NLL, _WEIGHT))
    return LossParts(tuple(map(str, names)), nll_WxP, weight_WxP)


class EvaluationSums:
    """Adds up what the evaluation step returns for each batch.

    Attributes:
      totals: name -> sum over all batches so far.
    """

    def __init__(self, targets: TargetParts | None = None) -> None:
        """Starts with nothing; `targets` are the parts of the data whose losses are kept, None for none."""
        self.totals: dict[str, float] = {}
        self._rows: dict[str, list[np.ndarray]] = {NLL_ROWS: [], WEIGHT_ROWS: []}
        self._targets = targets
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {kind: [] for kind in self._names()}
        self._n_rows = 0

    def _names(self) -> Mapping[str, tuple[str, ...]]:
        return {} if self._targets is None else self._targets.names

    def add(self, sums: Mapping[str, Any]) -> None:
        """Adds the host arrays of one batch: scalars, and possibly `NLL_ROWS`, `WEIGHT_ROWS`, (B,), and `NLL_TOKENS`.

        With several processes these have the rows of all of them.
        """
        for name, value in sums.items():
            if name == NLL_TOKENS:
                self._add_tokens(np.asarray(value))
            elif name in self._rows:
                self._rows[name].append(np.asarray(value))
            else:
                self.totals[name] = self.totals.get(name, 0.0) + float(value)

    def _add_tokens(self, nll_BxL: np.ndarray) -> None:
        if self._targets is not None:
            for kind, parts_BxL in self._targets.of_rows(self._n_rows, len(nll_BxL)).items():
                self._parts[kind].append(rows_by_part(nll_BxL, parts_BxL, len(self._names()[kind])))
        self._n_rows += len(nll_BxL)

    def windows(self, step: int, data: str) -> WindowLosses | None:
        """Returns the losses by window, without the padding rows at the end; None if the task reports none."""
        if not all(self._rows.values()):
            return None
        nll_W, weight_W = (np.concatenate(self._rows[name]) for name in (NLL_ROWS, WEIGHT_ROWS))
        n = int(np.max(np.flatnonzero(weight_W), initial=-1)) + 1
        parts = {
            kind: LossParts(self._names()[kind], *(np.concatenate(x)[:n] for x in zip(*batches, strict=True)))
            for kind, batches in self._parts.items()
            if batches
        }
        return WindowLosses(nll_W[:n], weight_W[:n], step, data, parts)
