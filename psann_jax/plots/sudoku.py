"""Figures of an iterative Sudoku network: accuracy by iterations, confidence on one puzzle, attention of a cell."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from psann_jax.config.sudoku import BUCKETS
from psann_jax.plots.style import line_style, new_figure
from psann_jax.tasks.sudoku_scores import BOUNDS

_CLUE_COLOUR, _WRONG_COLOUR, _MAX_PANELS = "#9a9a9a", "#d55e00", 12
_WHISKERS = """Whiskers: 95 % intervals over the puzzles, of one rating by Wilson (1927),
of balanced and natural means over the ratings by Zou, Huang and Zhang (2009)."""

# Number of iterations -> the result of `psann_jax.tasks.sudoku_scores.fractions_of`.
Rows = Mapping[int, Mapping[str, float]]


def draw_accuracy(path: Path, found: Rows, exact: Rows | None = None) -> None:
    """Plots the fraction of solved puzzles against the number of iterations, by rating and on average, as a PNG.

    Args:
      path: the file to write.
      found: puzzles with a valid grid in at most so many iterations.
      exact: puzzles whose grid is valid after exactly so many iterations, for a second panel; None if unknown.
    """
    panels = {"solved by the first valid grid": found}
    panels |= {} if exact is None else {"valid after exactly this number of iterations": exact}
    figure = new_figure(7 * len(panels) + 1, 5.3)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(all_axes, panels.items(), strict=True):
        _draw_fractions(axes, rows)
        axes.set_title(title)
    all_axes[0].set_ylabel("solved puzzles (%)")
    all_axes[0].legend(title="rating")
    figure.supxlabel(_WHISKERS, fontsize=8, color="#444444")
    figure.savefig(path, format="png")


def _draw_fractions(axes: Axes, rows: Rows) -> None:
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
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel("iterations")
    axes.grid(alpha=0.3)


def draw_confidence(
    path: Path, puzzle_81: np.ndarray, solution_81: np.ndarray, probabilities_Tx81x9: np.ndarray
) -> None:
    """Shows the most probable digit of every cell and its probability after up to 12 iterations, as a PNG.

    Args:
      path: the file to write.
      puzzle_81: the clues, shown in grey; 0 for empty cells.
      solution_81: the solution; digits that differ from it have a frame and a stroke.
      probabilities_Tx81x9: probabilities of the digits after every iteration.
    """
    count = len(probabilities_Tx81x9)
    spread = np.geomspace(1, count, _MAX_PANELS).round().astype(int)
    shown = np.unique(spread) if count > _MAX_PANELS else 1 + np.arange(count)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(max(3 * columns, 4.5), 3.2 * lines + 0.5)
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    is_clue_81 = puzzle_81 > 0
    for panel, iteration in zip(panels, shown.tolist(), strict=False):
        confidence_81 = probabilities_Tx81x9[iteration - 1].max(axis=1)
        digits_81 = np.where(is_clue_81, puzzle_81, 1 + probabilities_Tx81x9[iteration - 1].argmax(axis=1))
        image = panel.imshow(
            np.where(is_clue_81, np.nan, confidence_81).reshape(9, 9), vmin=0, vmax=1, cmap="YlGnBu", aspect="equal"
        )
        for cell, digit in enumerate(digits_81.tolist()):
            colour = _CLUE_COLOUR if is_clue_81[cell] else "white" if confidence_81[cell] > 0.6 else "black"
            panel.text(cell % 9, cell // 9, str(digit), ha="center", va="center", fontsize=8, color=colour)
        wrong = np.flatnonzero(digits_81 != solution_81)
        _mark_wrong(panel, wrong)
        what = f"{len(wrong)} wrong" if len(wrong) else "solved"
        panel.set_title(f"iteration {iteration}: {what}", fontsize=10)
        _grid_lines(panel)
    figure.colorbar(image, ax=panels.tolist(), shrink=0.7, label="probability of the digit shown")
    figure.supxlabel("Clues are grey. Wrong digits have an orange frame and a stroke.", fontsize=8, color="#444444")
    figure.savefig(path, format="png")


def _mark_wrong(panel: Axes, cells: np.ndarray) -> None:
    """Draws a frame and a stroke in cells, which show without colour, too."""
    for cell in cells.tolist():
        x, y = cell % 9, cell // 9
        frame = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * 0.42
        panel.plot(x + frame[:, 0], y + frame[:, 1], color=_WRONG_COLOUR, linewidth=1.6)
        panel.plot([x - 0.42, x + 0.42], [y + 0.42, y - 0.42], color=_WRONG_COLOUR, linewidth=1)


def draw_attention(path: Path, weights_NxHx81: np.ndarray, puzzle_81: np.ndarray, cell: int) -> None:
    """Shows the attention of one cell to all cells, with a panel for each layer and head, as a PNG.

    Colours are relative to the largest weight of their panel, which its title gives.

    Args:
      path: the file to write.
      weights_NxHx81: attention weights of the cell.
      puzzle_81: the clues, 0 for empty cells.
      cell: index of the cell, 0 to 80, which is marked.
    """
    n_layers, n_heads, _ = weights_NxHx81.shape
    figure = new_figure(2.2 * n_heads + 1, 2.4 * n_layers + 0.8)
    panels = figure.subplots(n_layers, n_heads, squeeze=False)
    for layer in range(n_layers):
        for head in range(n_heads):
            panel, weights_81 = panels[layer, head], weights_NxHx81[layer, head]
            largest = float(weights_81.max())
            image = panel.imshow(weights_81.reshape(9, 9) / largest, cmap="viridis", vmin=0, vmax=1, aspect="equal")
            for clue in np.flatnonzero(puzzle_81).tolist():
                dark = weights_81[clue] < 0.6 * largest
                text = panel.text(clue % 9, clue // 9, str(puzzle_81[clue]), ha="center", va="center", fontsize=6)
                text.set_color("white" if dark else "black")
            panel.plot(cell % 9, cell // 9, "s", markerfacecolor="none", markeredgecolor="red", markersize=9)
            panel.set_title(f"layer {layer + 1}, head {head + 1}: max {largest:.2f}", fontsize=8)
            _grid_lines(panel)
    label = "attention weight / largest weight of the panel"
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.8, label=label)
    where = f"row {cell // 9 + 1}, column {cell % 9 + 1}"
    figure.suptitle(f"attention of the cell in {where} (red square) to all cells; digits are the clues", fontsize=10)
    figure.savefig(path, format="png")


def _grid_lines(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for edge in (2.5, 5.5):
        panel.axhline(edge, color="black", linewidth=1)
        panel.axvline(edge, color="black", linewidth=1)
