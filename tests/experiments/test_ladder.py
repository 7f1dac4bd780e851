"""A ladder of sizes: its runs, fits against compute, trends of differences, and their part of the report."""

import dataclasses
import math

import numpy as np
import pytest

from psann_jax.config import ConfigError
from psann_jax.experiments.cases import all_cases, folders
from psann_jax.experiments.comparisons import compare
from psann_jax.experiments.ladder import ladders, power_law, slope_pairs
from psann_jax.experiments.outcome import DIVERGED
from psann_jax.experiments.report import write_report
from psann_jax.experiments.sweeps import check_overrides
from psann_jax.train.evaluation import WindowLosses
from tests.support.sweeps import make_outcome, small_sweep

RUNGS = {"s": {"model.d_model": 16, "train.steps": 10}, "m": {"train.steps": 40}, "l": {"train.steps": 160}}
CONTENDERS = {"transformer": {"model.base": "transformer"}, "respsann": {"model.base": "respsann"}}


def cases_of(seeds=(1, 2, 3, 4), **options):
    return all_cases(small_sweep(CONTENDERS, seeds=seeds, rungs=RUNGS, **options))


def outcomes_of(loss, windows=lambda case: None, **options):
    """Runs with the loss loss(case, log10 of their FLOPs)."""
    made = [make_outcome(case, 1.0) for case in cases_of(**options)]
    return [make_outcome(o.case, loss(o.case, math.log10(o.train_flops)), windows=windows(o.case)) for o in made]


def test_every_contender_runs_at_every_size():
    cases = cases_of(seeds=(1,), grid={"train.lr": (1e-3, 2e-3)})
    assert len(cases) == 2 * 3 * 2
    assert len(set(folders(cases).values())) == len(cases)
    by_name = {case.name: case for case in cases}
    small, large = (by_name[f"respsann_rung{rung}_lr0.001_seed1"] for rung in "sl")
    assert (small.config.model.d_model, small.config.train.steps) == (16, 10)
    assert (large.config.model.d_model, large.config.train.steps) == (32, 160)
    assert small.label == "respsann rung=s train.lr=0.001"
    assert dict(small.settings) == {"rung": "s", "train.lr": 1e-3}


def test_settings_of_a_contender_come_after_those_of_a_rung():
    contenders = {**CONTENDERS, "wide": {"model.base": "transformer", "model.d_model": 64}}
    cases = all_cases(small_sweep(contenders, seeds=(1,), rungs=RUNGS))
    assert {case.config.model.d_model for case in cases if case.contender == "wide"} == {64}
    sweep = small_sweep(contenders, rungs=RUNGS)
    all_cases(sweep)
    assert sweep.common.model.d_model == 32, "the common settings stay as they are"


def test_unknown_settings_and_overrides_of_a_rung_are_refused():
    with pytest.raises(ConfigError, match=r"^rungs.s.model.d_modell: .*did you mean.*d_model"):
        all_cases(small_sweep(CONTENDERS, rungs={"s": {"model.d_modell": 16}}))
    with pytest.raises(ConfigError, match=r"^--config.train.steps: is varied by the sweep's rungs"):
        check_overrides(small_sweep(CONTENDERS, rungs=RUNGS), ["train.steps=3"])


def test_a_power_law_is_found_exactly():
    def loss(case, x):
        return 10 ** (1.2 + 0.01 * case.seed - (0.05 + 0.001 * case.seed) * x)

    found = ladders(outcomes_of(loss))
    assert [ladder.label for ladder in found] == list(CONTENDERS)
    law = power_law(found[0])
    assert law.exponent == pytest.approx(0.0525)
    # 3.1824 is the 97.5 % quantile of Student's t with 3 degrees of freedom.
    half = 3.1824 * np.std([0.051, 0.052, 0.053, 0.054], ddof=1) / 2
    assert (law.low, law.high) == pytest.approx((0.0525 - half, 0.0525 + half), rel=1e-4)
    assert law.scale == pytest.approx(1.225)
    assert law.worst < 1e-3
    curved = power_law(ladders(outcomes_of(lambda case, x: 2 + 10 ** (3 - 0.4 * x)))[0])
    assert curved.worst > 0.002, "a constant term shows as a misfit"


def test_one_seed_has_no_interval_and_a_diverged_rung_does_not_count():
    single = power_law(ladders(outcomes_of(lambda case, x: 5 - 0.2 * x, seeds=(1,)))[0])
    assert math.isnan(single.low)
    diverged = outcomes_of(lambda case, x: math.nan if case.seed == 1 and x < 8 else 5 - 0.2 * x)
    assert ladders(diverged)[0].finite_seeds() in ([2, 3, 4], [1, 2, 3, 4])
    assert power_law(ladders(outcomes_of(lambda case, x: math.nan))[0]) is None
    assert ladders([make_outcome(case, 1.0) for case in all_cases(small_sweep())]) == []


def noisy(case, x, trend):
    rng = np.random.default_rng([case.seed, len(case.contender), round(100 * x)])
    return 8 - 0.5 * x + (case.contender == "respsann") * (trend * x - 0.1) + rng.normal(0, 0.002)


@pytest.mark.parametrize(("trend", "verdict"), [(-0.1, "better"), (0.1, "worse"), (0.0, "no difference shown")])
def test_the_slope_of_the_difference(trend, verdict):
    outcomes = outcomes_of(lambda case, x: noisy(case, x, trend))
    (slope,) = [c for c in compare(outcomes, "transformer", complete=True) if c.is_slope]
    assert slope.labels == ("respsann", "transformer")
    assert slope.difference.mean == pytest.approx(trend, abs=0.01)
    assert slope.difference.low < trend < slope.difference.high
    assert slope.difference.verdict == verdict
    assert slope.difference.tested == 4, "three rungs and the slope share one correction"


@pytest.mark.parametrize("lost", ["NaN", "diverged", "failed"])
def test_a_rung_without_a_loss_leaves_no_verdict_about_the_slope(lost):
    outcomes = outcomes_of(lambda case, x: noisy(case, x, -0.1), seeds=(1, 2, 3, 4, 5))
    last = outcomes[-1]
    assert (last.case.contender, dict(last.case.settings), last.case.seed) == ("respsann", {"rung": "l"}, 5)
    errors = {"diverged": f"{DIVERGED}10 updates were not finite", "failed": "out of memory"}
    if lost == "NaN":
        outcomes[-1] = make_outcome(last.case, math.nan)
    else:
        outcomes[-1] = dataclasses.replace(last, summary=None, error=errors[lost])
    why = "no verdict: a run failed" if lost == "failed" else "no verdict: a run diverged"
    found = compare(outcomes, "transformer", complete=True)
    assert [c.difference.verdict for c in found[2:]] == [why, why]
    assert [c.difference.tested for c in found] == [4] * 4
    assert len(ladders(outcomes)[1].finite_seeds()) == 4, "the fit describes the others"


@pytest.mark.parametrize("rung", ["s", "l"])
def test_other_text_at_one_rung_leaves_no_verdict_about_the_slope(rung):
    weight = np.full(64, 15.0)

    def windows(case):
        is_other = case.contender == "respsann" and dict(case.settings)["rung"] == rung
        return WindowLosses(weight * 3.0, weight, 40, "other" if is_other else "same")

    outcomes = outcomes_of(lambda case, x: noisy(case, x, -0.1), windows)
    reasons = {c.labels[0]: c.difference.reason for c in compare(outcomes, "transformer", complete=True)}
    why = "other validation text or tokens"
    assert {label for label, reason in reasons.items() if reason == why} == {"respsann", f"respsann rung={rung}"}


def test_the_noise_of_the_text_widens_the_interval_of_a_slope():
    rng, weight = np.random.default_rng(0), np.full(64, 15.0)
    noise = {(c, r): rng.normal(0, 0.1, 64) for c in CONTENDERS for r in RUNGS}

    def windows(case):
        return WindowLosses(weight * (3 + noise[case.contender, dict(case.settings)["rung"]]), weight, 40)

    def run(case, x):
        return noisy(case, x, -0.1)

    plain, wide = (slope_pairs(found, "transformer")[0] for found in (outcomes_of(run), outcomes_of(run, windows)))
    assert plain.samples.text is None
    x_R = ladders(outcomes_of(run))[0].log_flops()
    weights_R = (x_R - x_R.mean()) / np.sum((x_R - x_R.mean()) ** 2)
    # Independent windows: 2 contenders, R rungs, variance 0.01 / 64 each.
    assert wide.samples.text.variance == pytest.approx(2 * np.sum(weights_R**2) * 0.01 / 64, rel=0.5)


def test_the_report_has_fits_trends_and_a_figure(tmp_path):
    outcomes = outcomes_of(lambda case, x: noisy(case, x, -0.1))
    write_report("ladder", outcomes, len(outcomes), "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    fits = text.split("## Loss against compute")[1].split("##")[0]
    assert "| transformer | tokens | s, m, l | 4 | " in fits
    trends = text.split("## Differences against compute")[1].split("##")[0]
    assert "gains on the reference |" in trends
    assert (tmp_path / "loss_by_compute.png").stat().st_size > 10_000
    incomplete = outcomes[:-1]
    write_report("ladder", incomplete, len(outcomes), "transformer", tmp_path)
    trends = (tmp_path / "report.md").read_text().split("## Differences against compute")[1].split("##")[0]
    assert "no verdict: the sweep is not complete" in trends
    plain = [dataclasses.replace(o, case=dataclasses.replace(o.case, settings=())) for o in outcomes[:2]]
    write_report("plain", plain, 2, "transformer", tmp_path)
    assert "against compute" not in (tmp_path / "report.md").read_text()
