"""Figures of Sudoku networks: what is drawn where, and what explains it."""

import matplotlib.image
import numpy as np
import pytest

from psann_jax.plots import sudoku
from psann_jax.plots.style import new_figure
from psann_jax.tasks.sudoku_scores import fractions_of

SOLUTION = np.array([(3 * (row % 3) + row // 3 + column) % 9 + 1 for row in range(9) for column in range(9)], np.uint8)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    made = []
    monkeypatch.setattr(sudoku, "new_figure", lambda *size: made.append(new_figure(*size)) or made[-1])
    return made


def rows_of(*solved):
    """By number of iterations: the fractions of 100 puzzles of rating 0 and 100 of rating 1-2, so many solved."""
    buckets = np.repeat([0, 1], 100)
    return {2 ** (i + 2): fractions_of(np.arange(200) < n, buckets) for i, n in enumerate(solved)}


def heights(axes):
    """Label -> percentages of the curves with whiskers."""
    return {c.get_label(): c.lines[0].get_ydata().tolist() for c in axes.containers}


def test_accuracy_at_exactly_n_iterations_is_beside_the_first_valid_grid(figures, tmp_path):
    sudoku.draw_accuracy(tmp_path / "a.png", rows_of(100, 150), rows_of(100, 50))
    found, exact = figures[0].axes
    assert found.get_title() == "solved by the first valid grid"
    assert heights(found)["all"] == [50, 75]
    assert exact.get_title() == "valid after exactly this number of iterations"
    assert heights(exact)["all"] == [50, 25]
    assert found.get_ylim() == exact.get_ylim()
    assert "95 % intervals over the puzzles" in figures[0].get_supxlabel()
    sudoku.draw_accuracy(tmp_path / "a.png", rows_of(100, 150))
    assert [axes.get_title() for axes in figures[1].axes] == ["solved by the first valid grid"]


def test_whiskers_are_the_intervals(figures, tmp_path):
    rows = rows_of(30)
    sudoku.draw_accuracy(tmp_path / "a.png", rows)
    (container,) = [c for c in figures[0].axes[0].containers if c.get_label() == "0"]
    (segment,) = container.lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [100 * rows[4]["solved_0_low"], 100 * rows[4]["solved_0_high"]])


def test_wrong_digits_are_marked_and_counted(figures, tmp_path):
    puzzle = SOLUTION.copy()
    puzzle[[3, 40, 77]] = 0
    right = np.eye(9)[SOLUTION - 1]
    wrong = right.copy()
    wrong[[40, 77]] = np.roll(right[[40, 77]], 1, axis=1)
    wrong[0] = np.roll(right[0], 1)  # a clue: what the network says there is not used
    sudoku.draw_confidence(tmp_path / "a.png", puzzle, SOLUTION, np.stack([wrong, right]))
    first, second, bar = figures[0].axes
    assert first.get_title() == "iteration 1: 2 wrong"
    assert second.get_title() == "iteration 2: solved"
    marked = {
        (round(float(np.mean(line.get_xdata()))), round(float(np.mean(line.get_ydata()))))
        for line in first.lines
        if len(line.get_xdata()) == 2 and line.get_color() == sudoku._WRONG_COLOUR
    }
    assert marked == {(40 % 9, 40 // 9), (77 % 9, 77 // 9)}
    assert not [line for line in second.lines if line.get_color() == sudoku._WRONG_COLOUR]
    assert bar.get_ylabel() == "probability of the digit shown"
    assert "Wrong digits have" in figures[0].get_supxlabel()


def test_many_iterations_are_spread_over_twelve_panels(figures, tmp_path):
    puzzle = np.where(np.arange(81) < 40, SOLUTION, 0)
    sudoku.draw_confidence(tmp_path / "a.png", puzzle, SOLUTION, np.repeat(np.eye(9)[SOLUTION - 1][None], 300, 0))
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert len(titles) <= 12
    assert (titles[0], titles[-1]) == ("iteration 1: solved", "iteration 300: solved")


def test_the_scale_of_attention_is_explained(figures, tmp_path):
    weights = np.random.default_rng(0).random((2, 3, 81))
    weights /= weights.sum(-1, keepdims=True)
    sudoku.draw_attention(tmp_path / "a.png", weights, np.where(np.arange(81) % 3 == 0, SOLUTION, 0), 22)
    *panels, bar = figures[0].axes
    assert bar.get_ylabel() == "attention weight / largest weight of the panel"
    assert panels[4].get_title() == f"layer 2, head 2: max {weights[1, 1].max():.2f}"
    for panel in panels:
        assert panel.images[0].get_array().max() == 1
    assert "row 3, column 5" in figures[0].get_suptitle()
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05
