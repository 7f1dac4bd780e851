"""Figures of a sweep: loss curves with the range over the seeds, and final losses against cost."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psann_jax.config.families import family
from psann_jax.experiments.outcome import Outcome
from psann_jax.plots.style import line_style, new_figure


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
        late += [curve[t] for curve in curves for t in tokens if t >= 0.1 * tokens[-1] and math.isfinite(curve[t])]
    if late:
        # Losses in the first tenth of the training are so high that they would flatten the rest.
        margin = 0.05 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel(f"validation loss ({_unit(outcomes)}), mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def draw_final(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Plots the last validation loss of every run against its training FLOPs, as a PNG."""
    figure = new_figure()
    axes = figure.subplots()
    contenders = list(dict.fromkeys(o.case.contender for o in outcomes))
    for i, contender in enumerate(contenders):
        points = [(o.metrics()["train_flops"], o.val_loss) for o in outcomes if o.case.contender == contender]
        flops, losses = zip(*points, strict=True)
        axes.plot(flops, losses, label=contender, alpha=0.8, **line_style(i) | {"linestyle": ""})
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel(f"validation loss ({_unit(outcomes)}), one point per run")
    # A perplexity is at least 1, but Matplotlib also evaluates the function at 0.
    axes.secondary_yaxis("right", functions=(np.exp, lambda ppl: np.log(np.maximum(ppl, 1)))).set_ylabel("perplexity")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def _unit(outcomes: Sequence[Outcome]) -> str:
    return f"nats per {family(outcomes[0].case.config.model.base).get('task').TARGET}"
