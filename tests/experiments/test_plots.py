"""The PNG figures of a sweep: what is drawn, which values are left out, and the Pareto front."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.experiments import plots
from psann_jax.experiments.cases import all_cases
from psann_jax.plots.style import line_style, new_figure
from tests.support.sweeps import make_outcome, small_sweep


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    made = []
    monkeypatch.setattr(plots, "new_figure", lambda *size: made.append(new_figure(*size)) or made[-1])
    return made


def outcomes_of(losses):
    """Results of the small sweep: contender -> losses by seed."""
    cases = all_cases(small_sweep(seeds=(1, 2, 3, 4)))
    return [make_outcome(case, losses[case.contender][case.seed - 1]) for case in cases]


LOSSES = {
    "transformer": (3.0, 3.1, 2.9, 3.0),
    "waveresnet": (2.8, 2.9, 2.7, 2.8),
    "ngt": (3.3, 3.4, 3.2, 3.3),
}


def test_final_losses_have_runs_means_and_their_front(figures, tmp_path):
    outcomes = outcomes_of(LOSSES)
    plots.draw_final(tmp_path / "a.png", outcomes)
    axes = figures[0].axes[0]
    labels = {line.get_label(): line for line in axes.lines}
    flops = {o.case.contender: o.metrics()["train_flops"] for o in outcomes}
    for name, losses in LOSSES.items():
        np.testing.assert_allclose(labels[name].get_xydata(), [[flops[name], np.mean(losses)]])
    points = sorted((flops[name], np.mean(losses)) for name, losses in LOSSES.items())
    expected = [p for p in points if all(p[1] < q[1] for q in points if q[0] < p[0])]
    end = [(points[-1][0], expected[-1][1])]
    np.testing.assert_allclose(labels["Pareto front of the means"].get_xydata(), expected + end)
    runs = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [line.get_ydata().tolist() for line in runs] == [list(losses) for losses in LOSSES.values()]
    assert axes.child_axes[0].get_ylabel() == "perplexity"
    assert axes.get_title() == ""


def test_a_run_far_out_does_not_flatten_the_others(figures, tmp_path):
    losses = LOSSES | {"ngt": (3.3, 50.0, math.nan, 3.3)}
    plots.draw_final(tmp_path / "a.png", outcomes_of(losses))
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    assert 2.6 < low < 2.7 < 3.3 < high < 3.5
    assert axes.get_title() == "2 runs are above the axes (arrows), or diverged"
    plots.draw_losses(tmp_path / "b.png", outcomes_of(losses))
    assert figures[1].axes[0].get_ylim()[1] < 10


def test_losses_without_a_finite_perplexity_can_be_drawn(figures, tmp_path):
    for loss, n_axes in ((660.0, 1), (800.0, 0), (1e300, 0)):
        plots.draw_final(tmp_path / "a.png", outcomes_of(LOSSES | {"ngt": (3.0, loss, loss, loss)}))
        axes = figures[-1].axes[0]
        assert len(axes.child_axes) == n_axes
        assert axes.get_ylim()[1] > loss


def test_only_diverged_runs_can_be_drawn(figures, tmp_path):
    outcomes = outcomes_of(dict.fromkeys(LOSSES, (math.nan,) * 4))
    plots.draw_final(tmp_path / "a.png", outcomes)
    plots.draw_losses(tmp_path / "b.png", outcomes)
    assert (tmp_path / "b.png").stat().st_size > 1000


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=20))
def test_the_range_contains_the_lowest_and_most_values(losses):
    low, high = plots.readable_range(losses)
    assert low < high
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    # At least three quarters of the values are not above the third quartile.
    assert all(low < loss < high for loss in finite[: math.ceil(0.75 * len(finite))])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5) | st.just(math.nan)), max_size=12))
def test_the_front_has_all_points_that_none_beats(points):
    front = plots.pareto_front(points)
    values = [points[i] for i in front]
    assert values == sorted(values)
    for cost, loss in (p for p in points if not math.isnan(p[1])):
        beaten = any(c <= cost and other <= loss and (c, other) != (cost, loss) for c, other in points)
        assert ((cost, loss) in values) != beaten


def test_many_contenders_have_different_symbols():
    looks = {(line_style(i)["color"], line_style(i)["marker"]) for i in range(56)}
    assert len(looks) == 56
