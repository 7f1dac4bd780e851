"""``loss_curve.png``: training loss, validation loss and learning rate of a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from psann_jax.plots.style import new_figure
from psann_jax.utils.files import atomic_path

_FEW_ROWS = 10  # are not smoothed
_RAW, _SMOOTH, _VALID, _RATE, _PHASE = "#9ecae1", "#08519c", "#d94801", "#6a51a3", "#b8860b"


def plot_loss_curve(
    rows: Sequence[dict[str, Any]],
    path: str | Path,
    title: str = "",
    phases: Mapping[int, str] | None = None,
    target: str = "token",
) -> None:
    """Plots training loss, validation loss and learning rate against the step, as a PNG.

    From ten rows on, a moving average of the training loss is drawn over it. The last validation loss is written beside
    the axes.

    Args:
      rows: from `psann_jax.train.metrics.read_metrics`: "train" rows with loss and lr, "eval" rows with loss. Missing
        and non-finite values are skipped.
      path: the file to write.
      title: title of the figure, usually the run's name.
      phases: names of the training phases by their first step.
      target: what the losses are means over.

    Raises:
      OSError: the file cannot be written.
    """
    figure = new_figure(9, 6)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))

    steps, loss = _series(rows, "train", "loss")
    if steps.size >= _FEW_ROWS:
        window = max(3, steps.size // 20)
        losses.plot(steps, loss, color=_RAW, linewidth=1, label="train")
        losses.plot(steps, _smooth(loss, window), color=_SMOOTH, linewidth=1.8, label=f"train, mean of {window} rows")
    elif steps.size:
        losses.plot(steps, loss, color=_SMOOTH, marker=".", label="train")
    eval_steps, val_loss = _series(rows, "eval", "loss")
    if eval_steps.size:
        losses.plot(eval_steps, val_loss, color=_VALID, marker="o", markersize=5, linewidth=1.2, label="validation")
        # Outside the axes, where no curve can be.
        losses.annotate(
            f"{val_loss[-1]:.3f}",
            (1, val_loss[-1]),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            annotation_clip=False,
            color=_VALID,
        )
    rate_steps, rate = _series(rows, "train", "lr")
    rates.plot(rate_steps, rate, color=_RATE, marker="." if rate_steps.size < 30 else "")

    phases = phases or {}
    for step, name in phases.items():
        losses.axvline(step, color=_PHASE, linestyle="--", linewidth=2)
        # Losses begin at the top of the axes and end at the bottom; the name goes to the other side.
        y, side = (0.02, "bottom") if step == min(phases) else (0.98, "top")
        position = {"xycoords": ("data", "axes fraction"), "xytext": (7, 0), "textcoords": "offset points"}
        losses.annotate(name, (step, y), **position, rotation=90, va=side, fontsize=8, color=_PHASE)
    losses.set_ylabel(f"cross entropy (nats per {target})")
    losses.set_title(title)
    losses.grid(alpha=0.3)
    if steps.size or eval_steps.size:
        losses.legend(loc="upper right")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step (updates)")
    rates.set_ylim(bottom=0)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.grid(alpha=0.3)
    with atomic_path(path) as temporary:  # a viewer may be reading the last picture
        figure.savefig(temporary, format="png")


def _series(rows: Sequence[dict[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the finite values of one metric."""
    points = [(r["step"], r[name]) for r in rows if r["kind"] == kind and math.isfinite(r.get(name, math.nan))]
    steps_and_values = np.array(points, float).reshape(-1, 2)
    return steps_and_values[:, 0], steps_and_values[:, 1]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over about `window` values; over fewer at the start, where a loss falls, and the end."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(values.size)
    reach = np.minimum(window // 2, middle)
    ends = np.minimum(middle + reach + 1, values.size)
    return (sums[ends] - sums[middle - reach]) / (ends - middle + reach)
