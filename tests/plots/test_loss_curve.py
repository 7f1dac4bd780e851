"""The loss curve: which curves are drawn for which rows."""

import math

import matplotlib.image
import numpy as np
import pytest

from psann_jax.plots import loss_curve
from psann_jax.plots.loss_curve import _smooth, plot_loss_curve
from psann_jax.plots.style import new_figure


def train_rows(n, loss=lambda i: 3 + 5 / (i + 1)):
    return [{"step": i + 1, "kind": "train", "loss": loss(i), "lr": 1e-3 * (i + 1)} for i in range(n)]


def colours(path):
    """The set of (red, green, blue) in an image file."""
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 800
    return set(map(tuple, pixels.reshape(-1, 3)))


RAW, SMOOTH, VALID, RATE = (158, 202, 225), (8, 81, 156), (217, 72, 1), (106, 81, 163)
EVALS = [{"step": s, "kind": "eval", "loss": 4.0} for s in (0, 50, 100)]


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (train_rows(100) + EVALS, {RAW, SMOOTH, VALID, RATE}),
        (train_rows(100), {RAW, SMOOTH, RATE}),
        (train_rows(1), {SMOOTH, RATE}),
        (EVALS[:1], {VALID}),
        ([], set()),
        (train_rows(5, lambda i: math.nan if i != 2 else 1.0), {SMOOTH, RATE}),
        (train_rows(5, lambda i: math.inf), {RATE}),
        ([{"step": 1, "kind": "train", "grad_norm": 1.0}], set()),
    ],
)
def test_the_available_curves_are_drawn(tmp_path, rows, shown):
    path = tmp_path / "loss_curve.png"
    plot_loss_curve(rows, path, "run")
    assert colours(path) & {RAW, SMOOTH, VALID, RATE} == shown


def test_smoothing_is_a_centred_mean():
    values = np.arange(10.0) ** 2
    reach = [0, 1, *[2] * 8]
    expected = [np.mean(values[i - r : i + r + 1]) for i, r in enumerate(reach)]
    np.testing.assert_allclose(_smooth(values, 4), expected)
    np.testing.assert_allclose(_smooth(values, 1), values)


def test_the_last_validation_loss_is_clear_of_the_curves(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(loss_curve, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    plot_loss_curve(train_rows(100) + [{"step": s, "kind": "eval", "loss": 3.1} for s in (0, 100)], tmp_path / "a.png")
    axes = figures[0].axes[0]
    (label,) = (text for text in axes.texts if text.get_text() == "3.100")
    box, inside = label.get_window_extent(), axes.get_window_extent()
    assert box.x0 >= inside.x1
    assert box.x1 <= figures[0].bbox.x1


def test_a_failure_leaves_the_last_picture(tmp_path, monkeypatch):
    path = tmp_path / "loss_curve.png"
    plot_loss_curve(train_rows(3), path)
    before = path.read_bytes()

    def fail(self, temporary, format):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space"):
        plot_loss_curve(train_rows(3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["loss_curve.png"]


def test_the_axis_says_what_losses_are_means_over(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(loss_curve, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    plot_loss_curve(EVALS, tmp_path / "a.png")
    plot_loss_curve(EVALS, tmp_path / "b.png", target="empty cell")
    labels = [figure.axes[0].get_ylabel() for figure in figures]
    assert labels == ["cross entropy (nats per token)", "cross entropy (nats per empty cell)"]


def test_phases_are_marked(tmp_path):
    colour = (184, 134, 11)
    for name, phases in {"without": None, "with": {0: "51+", 40: "all"}}.items():
        plot_loss_curve(train_rows(100), tmp_path / f"{name}.png", phases=phases)
    assert (colour in colours(tmp_path / "with.png"), colour in colours(tmp_path / "without.png")) == (True, False)
