"""All comparisons of a report with the reference, from the outcomes of its runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from psann_jax.experiments.ladder import slope_pairs
from psann_jax.experiments.obstacles import obstacle
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.statistics import Difference, Samples, differences
from psann_jax.experiments.text_noise import text_noise


@dataclass(frozen=True)
class Comparison:
    """A contender against the reference with the same grid settings, rung and budget, or over all rungs.

    Attributes:
      labels: of the contender and of the reference.
      budget: what the two have in equal amount.
      difference: of their last validation losses.
      text_included: whether the noise of the evaluation text is part of the difference's interval.
      is_slope: whether the difference is that of the slopes of losses over log10 of compute, see
        `psann_jax.experiments.ladder.slope_pairs`.
    """

    labels: tuple[str, str]
    budget: str
    difference: Difference
    text_included: bool
    is_slope: bool = False


def compare(outcomes: Sequence[Outcome], reference: str, *, complete: bool) -> list[Comparison]:
    """Compares all contenders with the reference; all verdicts of a report come from one call.

    Args:
      outcomes: the runs of the sweep that are trained or have failed. A contender with one that failed or diverged has
        no verdict: the others do not stand for it.
      reference: the contender that the others are compared with.
      complete: whether all runs of the sweep have ended. Before that there is no verdict: one that could be looked at
        after every run, and be taken when it suits, would be wrong more often than it says.
    """
    groups: dict[object, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case.group, []).append(outcome)
    couples = []
    for group in groups.values():
        case = group[0].case
        others = groups.get((reference, case.settings, case.budget))
        if case.contender != reference and others is not None:
            couples.append((group, others))
    pairs = [
        ((group[0].case.label, others[0].case.label), group[0].case.budget, _samples(group, others), False)
        for group, others in couples
    ]
    pairs += [(pair.labels, pair.budget, pair.samples, True) for pair in slope_pairs(outcomes, reference)]
    found = differences([samples for _, _, samples, _ in pairs])
    if not complete:
        found = [replace(d, adjusted_p=float("nan"), reason="the sweep is not complete") for d in found]
    return [
        Comparison(labels, budget, d, samples.text is not None, is_slope)
        for (labels, budget, samples, is_slope), d in zip(pairs, found, strict=True)
    ]


def _samples(group: Sequence[Outcome], others: Sequence[Outcome]) -> Samples:
    kept = [[o for o in outcomes if not o.failed] for outcomes in (group, others)]
    losses = [{o.case.seed: o.val_loss for o in outcomes} for outcomes in kept]
    samples = Samples(losses[0], losses[1])
    seeds = samples.paired
    windows = [[o.windows for o in outcomes if not seeds or o.case.seed in seeds] for outcomes in kept]
    return replace(samples, text=text_noise(*windows), reason=obstacle(group, others))
