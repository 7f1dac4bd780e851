"""Pictures of a sweep: loss curves with bands over the seeds, and final losses against cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from psann_jax.bench.sweep_report import Outcome

# Okabe and Ito's colours, with lines and markers that tell them apart without colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINES, _MARKERS = ("-", "--", "-.", ":"), "osD^vPX"


def draw_losses(path: Path, outcomes: Sequence["Outcome"]) -> None:
    """Validation loss over the training tokens, the mean of the seeds in a band from least to most, as a PNG."""
    figure = _figure()
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
        colour, line, millions = _COLOURS[i % len(_COLOURS)], _LINES[i % len(_LINES)], np.array(tokens) / 1e6
        axes.plot(millions, losses.mean(0), line, marker=_MARKERS[i % len(_MARKERS)], label=label, color=colour)
        axes.fill_between(millions, losses.min(0), losses.max(0), color=colour, alpha=0.15)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("validation loss (nats a token), mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def draw_final(path: Path, outcomes: Sequence["Outcome"]) -> None:
    """The last validation loss of every run against its training FLOPs, as a PNG."""
    figure = _figure()
    axes = figure.subplots()
    contenders = list(dict.fromkeys(o.case.contender for o in outcomes))
    for i, contender in enumerate(contenders):
        points = [(o.metrics()["train_flops"], o.val_loss) for o in outcomes if o.case.contender == contender]
        flops, losses = zip(*points, strict=True)
        axes.plot(
            flops, losses, _MARKERS[i % len(_MARKERS)], color=_COLOURS[i % len(_COLOURS)], label=contender, alpha=0.8
        )
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs in matrix products")
    axes.set_ylabel("validation loss (nats a token), one point a run")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


def _figure() -> Figure:
    figure = Figure(figsize=(9, 5.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
