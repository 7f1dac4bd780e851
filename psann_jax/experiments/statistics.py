"""Statistics over seeds: means, paired differences, and whether a difference is significant."""

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
      mean: mean of the differences.
      low: lower end of the bootstrap's 95 % interval of the mean; NaN for a single seed.
      high: upper end of that interval; NaN for a single seed.
      seeds: number of pairs.
      seeds_needed: number of seeds with which four of five experiments would find a true difference of this size; None
        if it cannot be estimated.
    """

    mean: float
    low: float
    high: float
    seeds: int
    seeds_needed: int | None

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compares values with a reference's values of the same seeds.

    The interval is the percentile bootstrap over the pairs (Efron, 1979). With only a few seeds it is too narrow, so
    "better" and "worse" are less reliable than "no difference shown".
    """
    deltas = np.asarray(values, float) - np.asarray(reference, float)
    n, mean = len(deltas), float(deltas.mean())
    if n == 1:
        return Difference(mean, math.nan, math.nan, 1, None)
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.percentile(deltas[draws].mean(axis=1), (2.5, 97.5))
    known = mean != 0 and math.isfinite(mean)
    needed = max(math.ceil((_POWER * float(deltas.std(ddof=1)) / mean) ** 2), 2) if known else None
    return Difference(mean, float(low), float(high), n, needed)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, which is NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
