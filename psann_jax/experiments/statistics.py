"""Statistics over seeds: differences with t intervals, and verdicts with an error rate over a whole report.

The seeds of a contender are taken as independent draws whose losses (or, where the reference has the same seeds, whose
differences from it) are normally distributed. `differences` makes all verdicts of a report at once, because the error
rate belongs to the report: at most `ALPHA` of the reports in which nothing differs have any verdict.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special

ALPHA = 0.05  # fraction of reports without any true difference that may have a verdict
POWER = 0.8  # probability with which a difference of the detectable size gets a verdict
MIN_SEEDS = 4  # with fewer, an interval rests on the assumption of normality more than on the runs
# A spread below this fraction of the losses is rounding: the seeds do not act.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Noise:
    """An estimate of a variance.

    Attributes:
      variance: of a difference of means.
      freedom: its degrees of freedom.
    """

    variance: float
    freedom: float


@dataclass(frozen=True)
class Samples:
    """The results of a contender and of its reference, seed -> loss.

    Attributes:
      contender: losses of the contender.
      reference: losses of the reference.
      text: how much the difference of their means varies with the choice of the evaluation text; None if unknown.
      reason: why there can be no verdict, whatever the losses; Holm's procedure counts the comparison all the same, so
        that the level of the others does not depend on which runs fail.
    """

    contender: Mapping[int, float]
    reference: Mapping[int, float]
    text: Noise | None = None
    reason: str = ""

    @property
    def paired(self) -> tuple[int, ...]:
        """The seeds to pair, (): the two have too few in common, and are compared as independent samples."""
        common = tuple(sorted(self.contender.keys() & self.reference.keys()))
        enough = len(common) >= MIN_SEEDS or min(len(self.contender), len(self.reference)) < MIN_SEEDS
        return common if enough else ()


@dataclass(frozen=True)
class Difference:
    """The difference of two means over seeds.

    Attributes:
      mean: contender minus reference.
      low: lower end of the 95 % t interval of this difference alone; NaN if there is none.
      high: upper end of that interval.
      adjusted_p: p value of Holm's procedure over all comparisons of the report; NaN if there is no verdict.
      detectable: the smallest true difference that `POWER` of such experiments would find, at the level that the first
        step of Holm's procedure demands; NaN if there is no verdict.
      seeds: number of seeds of the contender and of the reference.
      pairs: the differences by seed if paired, otherwise ().
      tested: number of comparisons of the report that Holm's procedure counts, this one included; 0 if it is not one.
      reason: why there is no verdict; "" if there is one, which may be that no difference is shown.
    """

    mean: float
    low: float
    high: float
    adjusted_p: float
    detectable: float
    seeds: tuple[int, int]
    pairs: tuple[float, ...] = ()
    tested: int = 0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """What a report says."""
        if self.reason:
            return f"no verdict: {self.reason}"
        if not self.adjusted_p <= ALPHA:
            return "no difference shown"
        return "better" if self.mean < 0 else "worse"


def differences(samples: Sequence[Samples]) -> list[Difference]:
    """Compares every contender of a report with its reference.

    With at least `MIN_SEEDS` seeds in common, the two are paired by seed: a one-sample t test of the differences.
    Otherwise the test is Welch's (1947), for independent samples of unequal variance. A known noise of the evaluation
    text widens the interval, see `half_width`. The p values are adjusted by Holm's procedure (1979), which needs no
    assumption about how the comparisons depend on each other.

    Args:
      samples: all comparisons of the report.
    """
    estimates = [_estimate(s) for s in samples]
    p_values = {i: e.p for i, e in enumerate(estimates) if e.noises}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    results, m = [], len(p_values)
    for i, estimate in enumerate(estimates):
        found = estimate.difference
        if estimate.noises:
            found = replace(found, tested=m)
        if not found.reason:
            detectable = _detectable(estimate.noises, ALPHA / m)
            found = replace(found, adjusted_p=adjusted[i], detectable=detectable)
        results.append(found)
    return results


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted by Holm's procedure (1979); NaN counts as a comparison that is never significant."""
    filled = [1.0 if math.isnan(p) else p for p in p_values]
    adjusted, largest = [1.0] * len(filled), 0.0
    for rank, i in enumerate(sorted(range(len(filled)), key=filled.__getitem__)):
        largest = max(largest, min((len(filled) - rank) * filled[i], 1.0))
        adjusted[i] = largest
    return adjusted


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, which is NaN for a single value or if one is not finite."""
    has_deviation = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.fmean(values), statistics.stdev(values) if has_deviation else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % t interval of a mean; NaN with fewer than `MIN_SEEDS` values, or if one is not finite."""
    noise = noise_of_mean(values)
    if len(values) < MIN_SEEDS or math.isnan(noise.variance):
        return math.nan, math.nan
    mean, half = statistics.fmean(values), half_width([noise], ALPHA)
    return mean - half, mean + half


# --- one comparison -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Estimate:
    """A difference before the adjustment; `noises` is () if there are too few seeds for a test."""

    difference: Difference
    noises: tuple[Noise, ...] = ()
    p: float = math.nan


def _estimate(samples: Samples) -> _Estimate:
    paired = samples.paired
    groups = [list(values.values()) for values in (samples.contender, samples.reference)]
    if paired:
        pairs = tuple(samples.contender[seed] - samples.reference[seed] for seed in paired)
        mean, over_seeds = statistics.fmean(pairs), noise_of_mean(pairs)
        seeds = len(pairs), len(pairs)
    else:
        means = [statistics.fmean(group) if group else math.nan for group in groups]
        pairs, mean = (), means[0] - means[1]
        over_seeds = _welch([noise_of_mean(group) for group in groups])
        seeds = len(groups[0]), len(groups[1])
    losses = [loss for group in groups for loss in group]
    is_enough = min(seeds) >= MIN_SEEDS
    # Also of a seed that is not paired: the others were not chosen at random.
    is_finite = all(map(math.isfinite, losses))
    has_spread = is_enough and is_finite and over_seeds.variance > (_ROUNDING * max(map(abs, losses))) ** 2
    reason = samples.reason
    if not reason and not has_spread:
        equal = "equal for every seed" if mean == 0 else "no spread over the seeds"
        reason = equal if is_finite else "a run diverged"
        reason = reason if is_enough else f"fewer than {MIN_SEEDS} seeds"
    noises = (over_seeds,) if samples.text is None else (over_seeds, samples.text)
    half = half_width(noises, ALPHA) if has_spread else math.nan
    mean = mean if is_finite else math.nan
    found = Difference(mean, mean - half, mean + half, math.nan, math.nan, seeds, pairs, reason=reason)
    if reason:
        return _Estimate(found, noises if is_enough or samples.reason else ())
    return _Estimate(found, noises, _p_value(abs(mean), noises))


def noise_of_mean(values: Sequence[float]) -> Noise:
    """The variance of a mean of independent values; none is known for one value."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return Noise(math.nan, math.nan)
    return Noise(statistics.variance(values) / n, n - 1)


def _welch(noises: Sequence[Noise]) -> Noise:
    """The sum of independent noises, with the degrees of freedom of Welch (1947) and Satterthwaite (1946)."""
    variance = sum(noise.variance for noise in noises)
    if not variance > 0:
        return Noise(variance, noises[0].freedom)
    # By shares, because the square of a tiny variance would be 0.
    return Noise(variance, 1 / sum((noise.variance / variance) ** 2 / noise.freedom for noise in noises))


def half_width(noises: Sequence[Noise], level: float) -> float:
    """Half the width of the interval that misses the true difference with probability `level` or less.

    sqrt(sum of t_i^2 variance_i), each noise with the critical value t_i of its own degrees of freedom (Banerjee, 1960,
    "Approximate confidence interval for linear functions of means of k populations when the population variances are
    not equal", Sankhya 22). For one noise it is the t interval. The degrees of freedom of Satterthwaite for the sum
    would give up to twice the errors when four seeds meet a little noise of the text.
    """
    return math.sqrt(sum(float(special.stdtrit(n.freedom, level / 2)) ** 2 * n.variance for n in noises))


def _p_value(size: float, noises: Sequence[Noise]) -> float:
    """The level at which the interval of a difference of this size just reaches zero."""
    if len(noises) == 1:
        (noise,) = noises
        return 2 * float(special.stdtr(noise.freedom, -size / math.sqrt(noise.variance)))
    low, high = -700.0, 0.0  # logs of levels
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if half_width(noises, math.exp(middle)) < size else (middle, high)
    return math.exp(high)


def _detectable(noises: Sequence[Noise], level: float) -> float:
    """The true difference that a test at `level` finds with probability `POWER`.

    From the noncentral t distribution, exact for one noise. A verdict in the wrong direction is neglected: it has a
    probability below 1e-4 at this power.
    """
    total = _welch(noises)
    error = math.sqrt(total.variance)
    return error * float(special.nctdtrinc(total.freedom, 1 - POWER, half_width(noises, level) / error))
