"""What several seeds say: means, differences of pairs, and whether a difference is shown."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 20_000
_POWER = 1.96 + 0.84  # a difference is found in four of five experiments, at the 5 % level


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences over seeds.

    Attributes:
      mean: of them.
      low, high: the bootstrap's 95 % interval of the mean; NaN for a single seed.
      seeds: number of pairs.
      seeds_needed: with which a true difference of this size would be found in four of five experiments; None where
        that cannot be told.
    """

    mean: float
    low: float
    high: float
    seeds: int
    seeds_needed: int | None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compares values with those of the same seeds of a reference.

    The interval is the percentile bootstrap (Efron, 1979) over the pairs. Of three seeds it is too narrow, as every
    bootstrap of so few is; a line that says "no difference shown" is the safer half of what it tells.
    """
    deltas = np.asarray(values, float) - np.asarray(reference, float)
    n, mean = len(deltas), float(deltas.mean())
    if n == 1:
        return Difference(mean, math.nan, math.nan, 1, None)
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.percentile(deltas[draws].mean(axis=1), (2.5, 97.5))
    needed = None if mean == 0 else max(math.ceil((_POWER * float(deltas.std(ddof=1)) / mean) ** 2), 2)
    return Difference(mean, float(low), float(high), n, needed)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, the latter NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
