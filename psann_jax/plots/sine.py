"""Distributions of amplitude, frequency and damping of the sine activations before and after training."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from psann_jax.plots.style import COLOURS, new_figure

VALUES = ("amplitude", "frequency", "damping")
_BEFORE, _AFTER = COLOURS[4], COLOURS[0]


def draw_sine(
    path: str | os.PathLike[str], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], step: int
) -> None:
    """Plots box plots by layer as a PNG: boxes from the 25th to the 75th percentile, whiskers from the 5th to the 95th.

    Args:
      path: the file to write.
      before: values before training, by module of a block: (3, layers, features) in the order of `VALUES`; {}
        if they are not known.
      after: values after training, in the same form.
      step: number of updates.
    """
    figure = new_figure(12, 0.6 + 3.6 * len(after))
    grid = figure.subplots(len(after), len(VALUES), squeeze=False)
    for row, (module, arrays) in zip(grid, after.items(), strict=True):
        for i, (axes, name, late) in enumerate(zip(row, VALUES, arrays, strict=True)):
            if before:
                _boxes(axes, before[module][i], -0.2, _BEFORE, "//")
            _boxes(axes, late, 0.2 if before else 0.0, _AFTER, "")
            layers = np.arange(1, len(late) + 1)
            axes.set_xticks(layers, [str(layer) for layer in layers])
            axes.set_xlabel("layer")
            axes.set_ylabel(f"{name} ({module})")
            axes.grid(alpha=0.3, axis="y")
    handles = [Patch(facecolor="white", edgecolor=_BEFORE, hatch="//", label="before training")] if before else []
    handles.append(Patch(facecolor="white", edgecolor=_AFTER, label=f"after {step:,} updates"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9)
    figure.savefig(path, format="png")


def _boxes(axes: Axes, values_NxF: np.ndarray, offset: float, colour: str, hatch: str) -> None:
    axes.boxplot(
        list(values_NxF),
        positions=np.arange(1, len(values_NxF) + 1) + offset,
        widths=0.3,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "white", "edgecolor": colour, "hatch": hatch},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
