"""Pictures of a sweep: loss curves with bands over the seeds, and final losses against cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from psann_jax.plots.style import line_style, new_figure

if TYPE_CHECKING:
    from psann_jax.experiments.report import Outcome


def draw_losses(path: Path, outcomes: Sequence["Outcome"]) -> None:
    """Validation loss over the training tokens, the mean of the seeds in a band from least to most, as a PNG."""
    figure = new_figure()
    axes = figure.subplots()
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        label = " ".join([case.contender, *(f"{n}={v}" for n, v in case.settings)])
        groups.setdefault(label if case.budget == "tokens" else f"{label} ({case.budget})", []).append(outcome)
    for i, (label, group) in enumerate(groups.items()):
        curves = [
            {row["step"] * o.case.config.train.batch_tokens: row["loss"] for row in o.rows if row["kind"] == "eval"}
            for o in group
        ]
        # The loss before the first update is that of chance, for all.
        tokens = sorted(set.intersection(*map(set, curves)) - {0})
        losses = np.array([[curve[t] for t in tokens] for curve in curves])
        style, millions = line_style(i), np.array(tokens) / 1e6
        axes.plot(millions, losses.mean(0), label=label, **style)
        axes.fill_between(millions, losses.min(0), losses.max(0), color=style["color"], alpha=0.15)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("validation loss (nats a token), mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def draw_final(path: Path, outcomes: Sequence["Outcome"]) -> None:
    """The last validation loss of every run against its training FLOPs, as a PNG."""
    figure = new_figure()
    axes = figure.subplots()
    contenders = list(dict.fromkeys(o.case.contender for o in outcomes))
    for i, contender in enumerate(contenders):
        points = [(o.metrics()["train_flops"], o.val_loss) for o in outcomes if o.case.contender == contender]
        flops, losses = zip(*points, strict=True)
        axes.plot(flops, losses, label=contender, alpha=0.8, **line_style(i) | {"linestyle": ""})
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs in matrix products")
    axes.set_ylabel("validation loss (nats a token), one point a run")
    # A perplexity is 1 at least; Matplotlib asks for the place of 0, too.
    axes.secondary_yaxis("right", functions=(np.exp, lambda ppl: np.log(np.maximum(ppl, 1)))).set_ylabel("perplexity")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")
