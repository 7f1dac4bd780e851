"""Figures of a sweep as PNG files: loss curves with the range over the seeds, and final losses against FLOPs."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from psann_jax.config.families import family
from psann_jax.experiments.outcome import Outcome, train_flops
from psann_jax.plots.style import line_style, new_figure

_LARGEST_EXPONENT = 700.0  # of which Matplotlib can draw the exponential; a float64 ends at 709


def draw_losses(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Plots validation loss over training tokens, the mean of the seeds in a band of their range, as a PNG."""
    figure = new_figure()
    axes = figure.subplots()
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        label = case.label if case.budget == "tokens" else f"{case.label} ({case.budget})"
        groups.setdefault(label, []).append(outcome)
    late: list[float] = []
    for i, (label, group) in enumerate(groups.items()):
        # Of the first one: seeds of one contender have equally long updates.
        update = group[0].update_tokens
        curves = [{step * update: loss for step, loss in o.losses.items()} for o in group]
        # The loss before the first update is that of a random guess, for all contenders.
        tokens = sorted(set.intersection(*map(set, curves)) - {0})
        losses = np.array([[curve[t] for t in tokens] for curve in curves])
        style, millions = line_style(i), np.array(tokens) / 1e6
        axes.plot(millions, losses.mean(0), label=label, **style)
        axes.fill_between(millions, losses.min(0), losses.max(0), color=style["color"], alpha=0.15)
        late += [curve[t] for curve in curves for t in tokens if t >= 0.1 * tokens[-1]]
    # Losses in the first tenth of the training are so high that they would flatten the rest.
    axes.set_ylim(*readable_range(late))
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel(f"validation loss ({_unit(outcomes)}), mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def draw_final(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Plots the last validation losses against training FLOPs, with means and their Pareto front, as a PNG.

    A contender of which a run diverged has no mean.
    """
    figure = new_figure()
    axes = figure.subplots()
    low, high = readable_range([o.val_loss for o in outcomes])
    axes.set_ylim(low, high)
    groups: dict[str, dict[object, list[Outcome]]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.case.contender, {}).setdefault(outcome.case.group, []).append(outcome)
    means: list[tuple[float, float]] = []
    for i, (contender, of_contender) in enumerate(groups.items()):
        style = line_style(i) | {"linestyle": ""}
        for group in of_contender.values():
            flops = train_flops(group)
            losses = [o.val_loss for o in group]
            axes.plot([flops] * len(losses), losses, **style, markersize=5, alpha=0.5)
            if any(loss > high for loss in losses):
                axes.plot(flops, high, **style | {"marker": r"$\uparrow$"}, markersize=14, clip_on=False)
            means.append((flops, statistics.fmean(losses)))
        of_these = zip(*means[-len(of_contender) :], strict=True)
        axes.plot(*of_these, **style, markersize=11, markeredgecolor="black", label=contender)
    front = [means[i] for i in pareto_front(means)]
    if front:
        label = "Pareto front of the means"
        # At a higher cost the cheaper contender is still there.
        steps = zip(*front, (max(flops for flops, _ in means), front[-1][1]), strict=True)
        axes.plot(*steps, color="black", linewidth=1, drawstyle="steps-post", label=label, zorder=1)
    _label_final(axes, outcomes, [flops for flops, _ in means])
    figure.savefig(path, format="png")


def _label_final(axes: Axes, outcomes: Sequence[Outcome], flops: Sequence[float]) -> None:
    if max(flops) > 3 * min(flops):
        axes.set_xscale("log")
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel(f"validation loss ({_unit(outcomes)})")
    low, high = axes.get_ylim()
    if high < _LARGEST_EXPONENT:
        _add_perplexity(axes, is_wide=high - low > math.log(4))
    above = sum(not o.val_loss <= high for o in outcomes)
    if above:
        runs = "1 run is" if above == 1 else f"{above} runs are"
        axes.set_title(f"{runs} above the axes (arrows), or diverged", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9, title="large: mean of the seeds, small: one run", title_fontsize=9)


def _add_perplexity(axes: Axes, *, is_wide: bool) -> None:
    # A perplexity is at least 1, but Matplotlib also evaluates the function at 0.
    perplexity = axes.secondary_yaxis("right", functions=(np.exp, lambda ppl: np.log(np.maximum(ppl, 1))))
    perplexity.set_ylabel("perplexity")
    if is_wide:
        # Evenly spaced perplexities would all be at the top.
        perplexity.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        perplexity.yaxis.set_major_formatter(FuncFormatter(lambda ppl, _: f"{ppl:,.0f}"))


def readable_range(losses: Sequence[float]) -> tuple[float, float]:
    """Returns the limits of an axis for losses, without those that would flatten the rest.

    Left out are values that are not finite, and those further above the third quartile than three times the distance of
    the quartiles (Tukey, 1977, "Exploratory Data Analysis": "far out").
    """
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    if not finite.size:
        return 0.0, 1.0
    first, third = np.quantile(finite, (0.25, 0.75))
    kept = finite[finite <= third + 3 * (third - first)]
    margin = 0.05 * float(np.ptp(kept)) or 0.1
    return float(kept.min()) - margin, float(kept.max()) + margin


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the (cost, loss) than which no other has a lower loss at most at that cost, by cost.

    Points whose loss is not finite are left out.
    """
    front: list[int] = []
    finite = [i for i, (_, loss) in enumerate(points) if math.isfinite(loss)]
    for i in sorted(finite, key=points.__getitem__):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def _unit(outcomes: Sequence[Outcome]) -> str:
    return f"nats per {family(outcomes[0].case.config.model.base).get('task').TARGET}"
