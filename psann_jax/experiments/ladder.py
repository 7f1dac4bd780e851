"""A ladder of sizes: how losses, and their differences from the reference's, change with training compute.

A sweep with `rungs` trains every contender at several sizes. Each rung is one of the settings of its cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from psann_jax.experiments.cases import Settings
from psann_jax.experiments.obstacles import obstacle
from psann_jax.experiments.outcome import Outcome, train_flops
from psann_jax.experiments.statistics import Samples, mean_and_deviation, mean_interval
from psann_jax.experiments.sweeps import RUNG
from psann_jax.experiments.text_noise import same_windows, text_noise
from psann_jax.train.evaluation import WindowLosses

Rungs = Mapping[str, Mapping[int, Outcome]]  # rung -> seed -> run


@dataclass(frozen=True)
class Ladder:
    """The runs of a contender at all its sizes.

    Attributes:
      contender: its name.
      settings: the combination of the grid.
      budget: what all contenders have in equal amount.
      rungs: the runs.
    """

    contender: str
    settings: Settings
    budget: str
    rungs: Rungs

    @property
    def label(self) -> str:
        """Contender and grid settings, for tables."""
        return " ".join([self.contender, *(f"{name}={value}" for name, value in self.settings)])

    def seeds(self) -> list[int]:
        """The seeds of which every rung has a run, which may have failed or diverged."""
        return sorted(set.intersection(*(set(runs) for runs in self.rungs.values())))

    def finite_seeds(self) -> list[int]:
        """The seeds of which every rung has a run with a finite loss."""
        return [seed for seed in self.seeds() if np.isfinite(self.losses(seed)).all()]

    def log_flops(self) -> np.ndarray:
        """The decimal logarithm of the training FLOPs of each rung, (R,)."""
        return np.log10([train_flops(runs.values()) for runs in self.rungs.values()])

    def losses(self, seed: int) -> np.ndarray:
        """The last validation loss of each rung, (R,)."""
        return np.array([runs[seed].val_loss for runs in self.rungs.values()])


@dataclass(frozen=True)
class PowerLaw:
    """L = a C^-b, fitted to losses L and training FLOPs C of all rungs.

    Attributes:
      exponent: mean of b over the seeds.
      low: lower end of its 95 % t interval over the seeds; NaN with fewer than four.
      high: upper end of that interval.
      scale: decimal logarithm of the geometric mean of a.
      worst: largest relative distance of a rung's mean loss from the law.
    """

    exponent: float
    low: float
    high: float
    scale: float
    worst: float

    def at(self, log_flops: np.ndarray) -> np.ndarray:
        """The losses of the law at decimal logarithms of FLOPs."""
        return np.asarray(10 ** (self.scale - self.exponent * log_flops))


def ladders(outcomes: Sequence[Outcome]) -> list[Ladder]:
    """Returns the ladders with at least two rungs of different compute, in the order of the runs."""
    found: dict[tuple[str, Settings, str], dict[str, dict[int, Outcome]]] = {}
    for outcome in outcomes:
        case = outcome.case
        settings = dict(case.settings)
        rung = settings.pop(RUNG, None)
        if rung is not None:
            key = case.contender, tuple(settings.items()), case.budget
            found.setdefault(key, {}).setdefault(rung, {})[case.seed] = outcome
    all_ladders = [Ladder(*key, rungs) for key, rungs in found.items()]
    return [ladder for ladder in all_ladders if len(ladder.rungs) > 1 and np.ptp(ladder.log_flops()) > 0]


def power_law(ladder: Ladder) -> PowerLaw | None:
    """Fits log L = log a - b log C by least squares, for each seed alone; None without a seed that has all rungs.

    There is no constant term for the loss that compute cannot remove: three sizes cannot tell it from the curvature
    that it causes. The exponent therefore describes the range of compute that was trained, and no more.
    """
    x_R = ladder.log_flops()
    curves = [np.log10(ladder.losses(seed)) for seed in ladder.finite_seeds()]
    if not curves:
        return None
    fits = [np.polyfit(x_R, y_R, 1) for y_R in curves]
    exponents = [-float(slope) for slope, _ in fits]
    law = PowerLaw(
        mean_and_deviation(exponents)[0], *mean_interval(exponents), float(np.mean([c for _, c in fits])), 0.0
    )
    mean_R = np.mean([10**y_R for y_R in curves], axis=0)
    return replace(law, worst=float(np.max(np.abs(mean_R / law.at(x_R) - 1))))


@dataclass(frozen=True)
class SlopePair:
    """The slopes of a contender and of its reference, in nats per tenfold compute.

    Attributes:
      labels: of the two.
      budget: what the two have in equal amount.
      samples: the slopes by seed, for `psann_jax.experiments.statistics.differences`.
    """

    labels: tuple[str, str]
    budget: str
    samples: Samples


def slope_pairs(outcomes: Sequence[Outcome], reference: str) -> list[SlopePair]:
    """Returns the slopes of loss against compute of all contenders and their references.

    A seed of which a rung has diverged has no slope (NaN), and therefore its contender no verdict.

    The slope is that of the least-squares line through the losses of one seed over log10 of the reference's FLOPs. Both
    sides use these, so that the difference of slopes is the slope of the difference of losses between equal rungs.
    """
    found = ladders(outcomes)
    references = {(x.settings, x.budget): x for x in found if x.contender == reference}
    pairs = []
    for ladder in found:
        other = references.get((ladder.settings, ladder.budget))
        if other is not None and ladder.contender != reference and ladder.rungs.keys() == other.rungs.keys():
            # In the order of the reference's rungs, which its weights have.
            same_order = replace(ladder, rungs={rung: ladder.rungs[rung] for rung in other.rungs})
            samples = _samples(same_order, other)
            if samples is not None:
                pairs.append(SlopePair((ladder.label, other.label), ladder.budget, samples))
    return pairs


def _samples(ladder: Ladder, other: Ladder) -> Samples | None:
    x_R = other.log_flops() - other.log_flops().mean()
    weights_R = x_R / (x_R @ x_R)
    sides = ladder, other
    if not all(side.seeds() for side in sides):
        return None
    failed = [{s for runs in side.rungs.values() for s, run in runs.items() if run.failed} for side in sides]
    slopes = [
        {seed: float(weights_R @ side.losses(seed)) for seed in side.seeds() if seed not in lost}
        for side, lost in zip(sides, failed, strict=True)
    ]
    obstacles = [obstacle(runs.values(), other.rungs[rung].values()) for rung, runs in ladder.rungs.items()]
    samples = Samples(slopes[0], slopes[1], reason=next(filter(None, obstacles), ""))
    chosen = [samples.paired or tuple(side) for side in slopes]
    windows = [
        [_slope_windows(side, seed, weights_R) for seed in seeds] for side, seeds in zip(sides, chosen, strict=True)
    ]
    return replace(samples, text=text_noise(*windows))


def _slope_windows(ladder: Ladder, seed: int, weights_R: np.ndarray) -> WindowLosses | None:
    """The slope of each window; None if a run lacks its losses by window, or the rungs have other windows."""
    runs = [run for rung in ladder.rungs.values() if (run := rung[seed].windows) is not None]
    if len(runs) < len(ladder.rungs) or not same_windows(runs):
        return None
    nll_W = np.sum([w * run.nll_W.astype(np.float64) for w, run in zip(weights_R, runs, strict=True)], axis=0)
    return replace(runs[0], nll_W=nll_W)
