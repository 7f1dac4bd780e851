"""The style of all figures: colours, line styles, markers and size."""

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours; lines and markers distinguish curves without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"


def new_figure(width: float = 9, height: float = 5.5) -> Figure:
    """Creates an empty figure that needs no display; width and height are in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(i: int) -> dict[str, Any]:
    """Returns colour, line style and marker of the i-th curve, as keyword arguments of matplotlib."""
    names: dict[str, Sequence[str]] = {"color": COLOURS, "linestyle": LINES, "marker": MARKERS}
    return {name: values[i % len(values)] for name, values in names.items()}
