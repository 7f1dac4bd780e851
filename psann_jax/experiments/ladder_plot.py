"""The figure of a ladder of sizes: losses over training compute, with the fitted power laws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogFormatter, NullFormatter

from psann_jax.experiments.ladder import Ladder, power_law
from psann_jax.plots.style import line_style, new_figure


def draw_ladder(path: Path, found: Sequence[Ladder]) -> None:
    """Plots the last validation losses of ladders over their training FLOPs as a PNG, one point per run."""
    figure = new_figure()
    axes = figure.subplots()
    for i, ladder in enumerate(found):
        style, x_R = line_style(i), ladder.log_flops()
        points = [(x, o.val_loss) for x, runs in zip(x_R, ladder.rungs.values(), strict=True) for o in runs.values()]
        flops, losses = np.array(points).T
        axes.plot(10**flops, losses, **style | {"linestyle": ""}, alpha=0.8)
        law = power_law(ladder)
        label = ladder.label if ladder.budget == "tokens" else f"{ladder.label} ({ladder.budget})"
        line_L = np.linspace(x_R.min(), x_R.max(), 50)
        if law is not None:
            label = f"{label}, b = {law.exponent:.3f}"
            axes.plot(10**line_L, law.at(line_L), label=label, **style | {"marker": ""})
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Losses span less than a decade, for which Matplotlib labels too few ticks by default.
    axes.yaxis.set_major_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("validation loss (nats), one point per run; lines: L = a C^-b")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")
