"""The figure of what becomes of Sudoku grids over many iterations."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from psann_jax.plots.style import line_style, new_figure

_COUNTS = {
    "valid": "valid",
    "newly_solved": "valid for the first time",
    "regained": "valid again",
    "broken": "no longer valid",
}
_MEANS = {
    "changed_cells": "cells changed, mean",
    "wrong_cells": "wrong cells, mean",
    "wrong_confidence": "probability of wrong digits, mean",
    "size": "size of the hidden states\n(root mean square), mean",
    "distance": "change of the hidden states,\nrelative to their size, mean",
    "angle": "turn of the hidden states\n(degrees), mean",
}
_GROUPS = {"kept": "valid at the end", "lost": "valid once, not at the end", "unsolved": "never valid"}


def draw_stability(
    path: str | os.PathLike[str], summary: Mapping[str, Any], radii: Sequence[Mapping[str, Any]]
) -> None:
    """Plots numbers of puzzles, means by group and spectral radii as a PNG.

    Args:
      path: the file to write.
      summary: from `psann_jax.runs.sudoku_stability.summarise`.
      radii: from `psann_jax.runs.sudoku_stability.radii_of_groups`.
    """
    figure = new_figure(17, 7.5)
    panels = figure.subplots(2, 4)
    rows = summary["iterations"]
    iterations = [row["iteration"] for row in rows]
    for i, (name, title) in enumerate(_COUNTS.items()):
        _line(panels[0, 0], i, iterations, [row[name] for row in rows], title)
    panels[0, 0].set_ylabel("puzzles")
    panels[0, 0].legend(fontsize=8)
    for axes, (name, title) in zip((*panels[0, 1:], *panels[1, :3]), _MEANS.items(), strict=True):
        for i, group in enumerate(_GROUPS):
            if summary["groups"][group]:
                values = [np.nan if row[group][name] is None else row[group][name] for row in rows]
                label = f"{_GROUPS[group]} ({summary['groups'][group]:,})"
                _line(axes, i, iterations, values, label)
        axes.set_ylabel(title)
    panels[0, 1].legend(fontsize=8, title="puzzles")
    panels[0, 1].set_yscale("symlog", linthresh=0.1)
    for axes in panels[1, :3]:
        axes.set_yscale("log")
    _draw_radii(panels[1, 3], radii)
    figure.savefig(path, format="png")


def _line(axes: Axes, i: int, x: Sequence[int], y: Sequence[float], label: str) -> None:
    # Markers at every point would hide a line of hundreds of points; these are at equal distances along the line.
    axes.plot(x, y, label=label, markersize=4, markevery=0.15, **line_style(i))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)


def _draw_radii(axes: Axes, radii: Sequence[Mapping[str, Any]]) -> None:
    """Draws a point and the growth for each state, beside each other so that none hides another."""
    places = [(group, state) for group in _GROUPS for state in ("first valid", "last")]
    places = [place for place in places if any((r["group"], r["state"]) == place for r in radii)]
    for x, (group, state) in enumerate(places):
        chosen = [r for r in radii if (r["group"], r["state"]) == (group, state)]
        offsets = np.linspace(-0.25, 0.25, len(chosen)) if len(chosen) > 1 else np.zeros(1)
        style = line_style(list(_GROUPS).index(group)) | {"linestyle": "none"}
        values, errors = [r["radius"] for r in chosen], [r["error"] for r in chosen]
        axes.errorbar(x + offsets, values, errors, markersize=4, capsize=2, **style)
        axes.plot(
            x + offsets, [r["growth"] for r in chosen], "_", color="black", label="" if x else "growth of the state"
        )
    axes.legend(fontsize=8)
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xticks(range(len(places)), [f"{group},\n{state}" for group, state in places], fontsize=8)
    axes.set_ylabel("spectral radius of an iteration;\nabove the bar, small changes matter more")
    axes.grid(alpha=0.3, axis="y")
