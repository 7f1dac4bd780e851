"""Figures of an iterative Sudoku network: accuracy by iterations, confidence on one puzzle, attention of a cell."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from psann_jax.config.sudoku import BUCKETS
from psann_jax.plots.style import line_style, new_figure
from psann_jax.tasks.sudoku_scores import BOUNDS

_CLUE_COLOUR, _MAX_PANELS = "#9a9a9a", 12


def draw_accuracy(path: Path, rows: Mapping[int, Mapping[str, float]], *, stopped: bool) -> None:
    """Plots the fraction of solved puzzles against the number of iterations, by rating and on average, as a PNG.

    Args:
      path: the file to write.
      rows: by number of iterations, the result of `psann_jax.tasks.sudoku_scores.fractions_of`.
      stopped: whether puzzles end at their first valid grid, for the title.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    marks = list(rows)
    names = [name for name in rows[marks[0]] if not name.endswith(BOUNDS)]
    one_rating = sum(name.removeprefix("solved_") in BUCKETS for name in names) == 1
    for i, name in enumerate(names[-1:] if one_rating else names):
        fractions, low, high = (np.array([rows[m][f"{name}{end}"] for m in marks]) for end in ("", *BOUNDS))
        errors = 100 * np.maximum(0, [fractions - low, high - fractions])  # rounding could make them negative
        title = name.removeprefix("solved").removeprefix("_") or "all"
        line = axes.errorbar(marks, 100 * fractions, errors, label=title, markersize=5, capsize=3, **line_style(i))
        if name in ("solved", "solved_balanced", "solved_natural"):
            line.lines[0].set_linewidth(2.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, [str(m) for m in marks])
    axes.set_ylim(-2, 102)
    axes.set_xlabel("iterations")
    axes.set_ylabel("solved puzzles (%), 95 % intervals")
    axes.set_title("solved by the first valid grid" if stopped else "valid after exactly this number of iterations")
    axes.grid(alpha=0.3)
    axes.legend(title="rating")
    figure.savefig(path, format="png")


def draw_confidence(path: Path, puzzle_81: np.ndarray, probabilities_Tx81x9: np.ndarray) -> None:
    """Shows the most probable digit of every cell and its probability after up to 12 iterations, as a PNG.

    Args:
      path: the file to write.
      puzzle_81: the clues, shown in grey; 0 for empty cells.
      probabilities_Tx81x9: probabilities of the digits after every iteration.
    """
    count = len(probabilities_Tx81x9)
    spread = np.geomspace(1, count, _MAX_PANELS).round().astype(int)
    shown = np.unique(spread) if count > _MAX_PANELS else 1 + np.arange(count)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(3 * columns, 3.2 * lines)
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, iteration in zip(panels, shown.tolist(), strict=False):
        confidence_81 = probabilities_Tx81x9[iteration - 1].max(axis=1)
        digits_81 = np.where(puzzle_81 > 0, puzzle_81, 1 + probabilities_Tx81x9[iteration - 1].argmax(axis=1))
        image = panel.imshow(
            np.where(puzzle_81 > 0, np.nan, confidence_81).reshape(9, 9), vmin=0, vmax=1, cmap="YlGnBu", aspect="equal"
        )
        for cell, digit in enumerate(digits_81.tolist()):
            colour = _CLUE_COLOUR if puzzle_81[cell] else "white" if confidence_81[cell] > 0.6 else "black"
            panel.text(cell % 9, cell // 9, str(digit), ha="center", va="center", fontsize=8, color=colour)
        panel.set_title(f"iteration {iteration}", fontsize=10)
        _grid_lines(panel)
    figure.colorbar(image, ax=panels.tolist(), shrink=0.7, label="probability of the digit shown; clues in grey")
    figure.savefig(path, format="png")


def draw_attention(path: Path, weights_NxHx81: np.ndarray, puzzle_81: np.ndarray, cell: int) -> None:
    """Shows the attention of one cell to all cells, with a panel for each layer and head, as a PNG.

    Args:
      path: the file to write.
      weights_NxHx81: attention weights of the cell.
      puzzle_81: the clues, 0 for empty cells.
      cell: index of the cell, 0 to 80, which is marked.
    """
    n_layers, n_heads, _ = weights_NxHx81.shape
    figure = new_figure(2.2 * n_heads, 2.4 * n_layers)
    panels = figure.subplots(n_layers, n_heads, squeeze=False)
    for layer in range(n_layers):
        for head in range(n_heads):
            panel = panels[layer, head]
            panel.imshow(weights_NxHx81[layer, head].reshape(9, 9), cmap="viridis", vmin=0, aspect="equal")
            for clue in np.flatnonzero(puzzle_81).tolist():
                panel.text(clue % 9, clue // 9, str(puzzle_81[clue]), ha="center", va="center", fontsize=6, color="w")
            panel.plot(cell % 9, cell // 9, "s", markerfacecolor="none", markeredgecolor="red", markersize=9)
            panel.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            _grid_lines(panel)
    figure.suptitle(f"attention of row {cell // 9 + 1}, column {cell % 9 + 1}, each panel with its own scale")
    figure.savefig(path, format="png")


def _grid_lines(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for edge in (2.5, 5.5):
        panel.axhline(edge, color="black", linewidth=1)
        panel.axvline(edge, color="black", linewidth=1)
