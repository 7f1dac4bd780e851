"""The part of a sweep's report about its ladder of sizes: titles, texts and rows of tables."""

import math
from collections.abc import Sequence

from psann_jax.experiments.comparisons import Comparison
from psann_jax.experiments.ladder import ladders, power_law
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.statistics import ALPHA, MIN_SEEDS, Difference

Parts = tuple[str, str, list[list[str]]]  # title, text and table, whose first row is the head


def ladder_parts(finished: Sequence[Outcome], comparisons: Sequence[Comparison]) -> list[Parts]:
    """Returns the fits of the contenders and the slopes of their differences; [] if the sweep has no ladder.

    Args:
      finished: the trained runs.
      comparisons: all of the report.
    """
    fits = _fits(finished)
    return [fits, *_slopes(comparisons)] if fits[2] else []


def _fits(finished: Sequence[Outcome]) -> Parts:
    rows = [["contender", "budget", "rungs", "seeds", "exponent b", "95 % interval", "largest misfit"]]
    for ladder in ladders(finished):
        law, seeds = power_law(ladder), ladder.finite_seeds()
        if law is not None:
            interval = f"{law.low:.4f} to {law.high:.4f}" if len(seeds) >= MIN_SEEDS else "-"
            numbers = [", ".join(ladder.rungs), str(len(seeds)), f"{law.exponent:.4f}", interval]
            # A line through two points fits any.
            rows.append([ladder.label, ladder.budget, *numbers, f"{law.worst:.2%}" if len(ladder.rungs) > 2 else "-"])
    text = (
        "Fitted is the power law L = a C^-b, a straight line through log L over log C by least squares, for each seed "
        "alone; L is the last validation loss, C the training FLOPs of the rungs. The interval is the 95 % t interval "
        f"over the seeds, if there are {MIN_SEEDS} or more. No constant term for an irreducible loss is fitted, so the "
        "exponent holds for this range of compute only. The last column is the largest distance of a mean loss from "
        "the law: compare exponents only where it is small."
    )
    return "Loss against compute", text, rows if len(rows) > 1 else []


def _slopes(comparisons: Sequence[Comparison]) -> list[Parts]:
    rows = [["contender", "reference", "budget", "seeds", "slope", "95 % interval", "p (Holm)", "with compute"]]
    for comparison in comparisons:
        d = comparison.difference
        if comparison.is_slope:
            interval = "-" if math.isnan(d.low) else f"{d.low:+.4f} to {d.high:+.4f}"
            p = "-" if math.isnan(d.adjusted_p) else f"{d.adjusted_p:.3f}" if d.adjusted_p >= 1e-3 else "< 0.001"
            numbers = [str(min(d.seeds)), f"{d.mean:+.4f}", interval, p, _trend(d)]
            rows.append([*comparison.labels, comparison.budget, *numbers])
    text = (
        "The slope of the difference from the reference's loss at equal rungs, in nats per tenfold compute of the "
        "reference. Negative: the contender gains on the reference as both grow. The interval is the 95 % t interval "
        "over the seeds, of this slope alone, with the noise of the evaluation text where it is known. The p values "
        f"are adjusted for all comparisons of this report together; a trend is named at p <= {ALPHA}."
    )
    return [("Differences against compute", text, rows)] if len(rows) > 1 else []


def _trend(d: Difference) -> str:
    verdicts = {"better": "gains on the reference", "worse": "loses to the reference"}
    return verdicts.get(d.verdict, d.verdict.replace("difference", "trend"))
