"""Losses by part of the validation data, such as ranges of positions, with standard errors over the windows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class TargetParts(Protocol):
    """Assigns every target of the validation set to one part of each kind.

    Attributes:
      names: kind, such as "position" -> the names of its parts.
    """

    names: Mapping[str, tuple[str, ...]]

    def of_rows(self, first: int, n: int) -> Mapping[str, np.ndarray]:
        """Returns the parts of the targets of validation rows [first, first + n) by kind.

        Each is an array (n, L) of indices into the names, -1 for tokens that are no targets and for padding rows.
        """


class PartLoss(NamedTuple):
    """The loss of one part.

    Attributes:
      name: of the part.
      loss: mean cross entropy in nats per target; NaN without targets.
      stderr: its standard error over evaluation texts; NaN if fewer than two blocks of windows have targets.
      tokens: number of targets.
    """

    name: str
    loss: float
    stderr: float
    tokens: int


@dataclass(frozen=True)
class LossParts:
    """Losses by window and part.

    Attributes:
      names: of the P parts.
      nll_WxP: sum of the cross entropy over the targets of each window in each part, in nats.
      weight_WxP: number of these targets.
    """

    names: tuple[str, ...]
    nll_WxP: np.ndarray
    weight_WxP: np.ndarray

    def losses(self) -> list[PartLoss]:
        """Returns the loss of each part with its standard error, see `standard_error`."""
        found = []
        for name, nll_W, weight_W in zip(self.names, self.nll_WxP.T, self.weight_WxP.T, strict=True):
            total = float(weight_W.sum(dtype=np.float64))
            loss = float(nll_W.sum(dtype=np.float64)) / total if total else math.nan
            found.append(PartLoss(name, loss, standard_error(nll_W, weight_W), int(total)))
        return found


def rows_by_part(nll_BxL: np.ndarray, parts_BxL: np.ndarray, n_parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums of `nll_BxL` by row and part, and the numbers of targets, each (B, n_parts) float64."""
    rows, columns = np.nonzero(parts_BxL >= 0)
    cells = rows * n_parts + parts_BxL[rows, columns]
    shape, size = (len(nll_BxL), n_parts), len(nll_BxL) * n_parts
    nll = np.bincount(cells, nll_BxL[rows, columns].astype(np.float64), size)
    return nll.reshape(shape), np.bincount(cells, minlength=size).astype(np.float64).reshape(shape)


def standard_error(nll_W: np.ndarray, weight_W: np.ndarray) -> float:
    """Estimates the standard error of sum(nll) / sum(weight) over evaluation texts.

    It is that of a ratio (Cochran, "Sampling Techniques", 1977, section 6.3), from the residuals nll - loss * weight.
    Successive windows are often parts of one document, so the residuals of blocks of about W^(1/3) windows are added
    first, as long as those of the bootstrap of a sweep's report (`psann_jax.experiments.text_noise`).

    Args:
      nll_W: sum of the losses of each window.
      weight_W: number of targets of each window.

    Returns:
      The standard error; NaN if fewer than two blocks have targets.
    """
    total = weight_W.sum(dtype=np.float64)
    if not total:
        return math.nan
    block = max(round(len(nll_W) ** (1 / 3)), 1)
    starts = np.arange(0, len(nll_W), block)
    residual_W = nll_W - (nll_W.sum(dtype=np.float64) / total) * weight_W.astype(np.float64)
    n_blocks = np.count_nonzero(np.add.reduceat(weight_W, starts))
    if n_blocks < 2:
        return math.nan
    squares = float(np.sum(np.add.reduceat(residual_W, starts) ** 2))
    return math.sqrt(squares * n_blocks / (n_blocks - 1)) / float(total)
