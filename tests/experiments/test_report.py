"""Reports of sweeps: tables, files and figures from results written by hand."""

import csv
import dataclasses
import json
import math
import re
import sys

import numpy as np
import pytest

from psann_jax.config.io import default_config
from psann_jax.experiments.budgets import flops_per_token
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.outcome import COLUMNS, DIVERGED, Outcome
from psann_jax.experiments.report import write_report
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.train.evaluation import WindowLosses
from tests.support.sweeps import make_outcome, small_sweep

GRAVITY = {
    "ngt": {"model.base": "ngt"},
    "no_radius": {"model.base": "ngt", "model.cutoff": "none"},
    "vanilla": {"model.base": "vanilla"},
}


def section(report, title):
    """Rows of the table under a heading, as lists of cells."""
    (part,) = [part for part in report.split("\n## ") if part.startswith(title)]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def read_csv(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_the_report_names_what_is_shown_and_what_is_not(tmp_path):
    cases = all_cases(small_sweep(seeds=(1, 2, 3)))
    losses = {"transformer": (3.0, 3.1, 2.9), "waveresnet": (2.8, 2.91, 2.7), "ngt": (3.05, 3.02, 2.97)}
    outcomes = [make_outcome(case, losses[case.contender][case.seed - 1]) for case in cases]
    outcomes[-1] = Outcome(cases[-1], outcomes[-1].folder, None, [], "the <disk> | was full")
    write_report("three", outcomes, 9, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "8 of 9 finished, 1 failed" in text
    assert "One seed" not in text
    assert [row[:4] for row in section(text, "Leaderboard at equal training tokens")] == [
        ["waveresnet", "3", "2.8033", "0.1050"],
        ["transformer", "3", "3.0000", "0.1000"],
        ["ngt", "2", "3.0350", "0.0212"],
    ]
    why = "no verdict: fewer than 4 seeds"
    assert section(text, "Differences") == [
        ["waveresnet", "transformer", "3", "-0.1967", "by seed -0.2000, -0.1900, -0.2000", "-", why, "-"],
        ["ngt", "transformer", "2", "-0.0150", "by seed +0.0500, -0.0800", "-", why, "-"],
    ]
    assert "With fewer than 4 seeds there is no verdict; the differences are given by seed." in text
    assert "Holm's procedure" not in text
    assert "| ngt_seed3 | the <disk> \\| was full |" in text
    page = (tmp_path / "report.html").read_text()
    assert "the &lt;disk&gt; | was full" in page
    assert page.count('<img alt="') == 0
    assert 'id="curves"' in page
    rows = read_csv(tmp_path / "results.csv")
    assert [row["status"] for row in rows] == ["ok"] * 8 + ["error"]
    assert float(rows[0]["val_loss"]) == 3.0
    assert float(rows[0]["train_flops"]) == 40 * 64 * flops_per_token(cases[0].config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["seeds"], summary["n_cases"], len(summary["results"])) == ([1, 2, 3], 9, 9)
    assert set(json.loads((tmp_path / "config_used.json").read_text())) == {case.name for case in cases}


LOSSES = {
    "transformer": (3.0, 3.1, 2.9, 3.05),
    "waveresnet": (2.8, 2.91, 2.7, 2.84),
    "ngt": (3.05, 3.02, 2.97, 3.1),
}


def test_four_seeds_give_verdicts_for_the_whole_report(tmp_path):
    cases = all_cases(small_sweep(seeds=(1, 2, 3, 4)))
    outcomes = [make_outcome(case, LOSSES[case.contender][case.seed - 1]) for case in cases]
    write_report("four", outcomes, 12, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert section(text, "Differences") == [
        ["waveresnet", "transformer", "4", "-0.2000", "-0.2130 to -0.1870", "< 0.001", "better", "0.0222"],
        ["ngt", "transformer", "4", "+0.0225", "-0.0873 to +0.1323", "0.561", "no difference shown", "0.1874"],
    ]
    assert "Student's for differences paired by seed" in text
    assert "Holm's procedure for all 2 comparisons of this report" in text
    assert "The noise of the evaluation text is not part of any interval" in text
    write_report("four", outcomes[:-1], 12, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert [row[6] for row in section(text, "Differences")] == ["no verdict: the sweep is not complete"] * 2


def test_a_report_says_whose_text_noise_is_included(tmp_path):
    rng, cases = np.random.default_rng(0), all_cases(small_sweep(seeds=(1, 2, 3, 4)))
    weight = np.full(64, 15.0, np.float32)
    outcomes = []
    for case in cases:
        loss = LOSSES[case.contender][case.seed - 1]
        windows = WindowLosses(weight * (loss + rng.normal(0, 0.1, 64)), weight, 40)
        outcomes.append(make_outcome(case, loss, windows=windows))
    write_report("four", outcomes, 12, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "The noise of the evaluation text is included, by a bootstrap over its windows." in text
    low, high = map(float, section(text, "Differences")[0][4].split(" to "))
    assert -0.3 < low < -0.2130
    assert -0.1870 < high < -0.1
    outcomes = [dataclasses.replace(o, windows=None) if o.case.contender == "ngt" else o for o in outcomes]
    write_report("four", outcomes, 12, "transformer", tmp_path)
    assert "is not part of the interval of ngt:" in (tmp_path / "report.md").read_text()


def test_contenders_with_other_text_or_tokens_are_marked(tmp_path):
    contenders = {
        "transformer": {"model.base": "transformer"},
        "long": {"model.base": "transformer", "train.steps": 80},
    }
    outcomes = [make_outcome(case, 3.0 + 0.01 * case.seed) for case in all_cases(small_sweep(contenders, seeds=(1, 2)))]
    weight = np.full(64, 15.0, np.float32)
    outcomes = [dataclasses.replace(o, windows=WindowLosses(3 * weight, weight, 40, "text")) for o in outcomes]
    write_report("long", outcomes, 4, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert {row[0] for row in section(text, "Leaderboard")} == {"transformer", "long (unequal tokens)"}
    assert "over the same validation set." in text
    outcomes[0] = dataclasses.replace(outcomes[0], windows=WindowLosses(3 * weight, weight, 40, "another text"))
    write_report("long", outcomes, 4, "long", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert {row[0] for row in section(text, "Leaderboard")} == {"transformer (unequal tokens)", "long"}
    for outcome in outcomes[::2]:  # their longer training has as many tokens, the others being padding
        outcome.summary["tokens"] *= 2
    write_report("long", outcomes, 4, "long", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert {row[0] for row in section(text, "Leaderboard")} == {"transformer", "long"}
    assert "but not all over the same validation text and tokens." in text


def test_seeds_that_are_not_shared_are_marked(tmp_path):
    cases = all_cases(small_sweep(seeds=range(1, 9)))
    kept = [case for case in cases if (case.seed > 4) == (case.contender == "transformer")]
    outcomes = [make_outcome(case, LOSSES[case.contender][(case.seed - 1) % 4]) for case in kept]
    write_report("eight", outcomes, 12, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Welch's where too few seeds are shared" in text
    assert section(text, "Differences")[0][2] == "4 and 4"


@pytest.fixture
def gravity():
    """One seed of three gravity runs, one of which was trained for longer."""
    ngt, no_radius, vanilla = all_cases(small_sweep(GRAVITY, seeds=(42,)))
    return [
        make_outcome(ngt, 4.1, {0: 9.0, 20: 4.0, 40: 4.1}),
        make_outcome(no_radius, 4.01, {0: 9.0, 20: 4.2, 40: 4.01}),
        make_outcome(vanilla, 2.4, {0: 1.0, 20: 3.0, 40: 2.5, 48: 2.4}),
    ]


def test_losses_at_the_last_common_step_and_the_best_ones(gravity, tmp_path):
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Step 40 is the last one that all runs have evaluated" in text
    assert section(text, "Loss at the last common step") == [
        ["vanilla", "1", "2.5000", "-"],
        ["no_radius", "1", "4.0100", "-"],
        ["ngt", "1", "4.1000", "-"],
    ]
    assert section(text, "Best and last losses") == [
        ["vanilla_seed42", "2.4000", "11.02", "48", "2.4000", "48"],
        ["ngt_seed42", "4.0000", "54.60", "20", "4.1000", "40"],
        ["no_radius_seed42", "4.0100", "55.15", "40", "4.0100", "40"],
    ]


def test_speed_memory_contenders_and_settings(gravity, tmp_path):
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert section(text, "Throughput and memory")[0] == ["ngt_seed42", "15.625", "0.064", "1,000", "300", "12,345"]
    assert section(text, "Contenders") == [
        ["ngt", "none"],
        ["no_radius", "model.cutoff=none"],
        ["vanilla", "model.base=vanilla"],
    ]
    assert ["train.batch_tokens", "64"] in section(text, "Settings of ngt_seed42")


def test_an_unknown_speed_is_no_part_of_a_mean(tmp_path):
    """It is 0 in the summary of a run whose last start took no step."""
    sweep = small_sweep({name: GRAVITY[name] for name in ("ngt", "vanilla")}, seeds=(1, 2))
    outcomes = [make_outcome(case, 4.0) for case in all_cases(sweep)]
    for outcome in outcomes:
        outcome.summary["tokens_per_s"] *= outcome.case.contender == "ngt" and outcome.case.seed == 1
    write_report("speeds", outcomes, 4, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert {row[0]: row[-2] for row in section(text, "Leaderboard")} == {"ngt": "1,000", "vanilla": "-"}
    assert {tuple(row[1:4]) for row in section(text, "Throughput and memory")} == {
        ("15.625", "0.064", "1,000"),
        ("-", "-", "-"),
    }


def test_one_seed_gives_no_verdict(gravity, tmp_path):
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "One seed cannot show which contender is better" in text
    assert section(text, "Differences") == [
        ["no_radius", "ngt", "1", "-0.0900", "-", "-", "no verdict: fewer than 4 seeds", "-"],
        ["vanilla", "ngt", "1", "-1.7000", "-", "-", "no verdict: fewer than 4 seeds", "-"],
    ]


def test_results_csv_describes_model_data_and_losses(gravity, tmp_path):
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    _, row, _ = read_csv(tmp_path / "results.csv")
    assert tuple(row) == COLUMNS
    expected = {
        "base": "ngt", "contender": "no_radius", "differences": "model.cutoff=none", "settings": "", "seed": "42",
        "dataset": "builtin:python", "d_model": "32", "n_layers": "2", "n_heads": "4", "train_steps": "40",
        "val_loss": "4.01", "best_val_loss": "4.01", "best_step": "40", "path": "runs/no_radius_seed42",
    }  # fmt: skip
    assert row | expected == row


def test_padding_counts_as_flops_but_not_as_tokens(gravity, tmp_path):
    gravity[1].summary["tokens"] = 40 * 16
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    packed, padded, _ = read_csv(tmp_path / "results.csv")
    assert (float(packed["train_tokens"]), float(padded["train_tokens"])) == (40 * 64, 40 * 16)
    assert float(padded["train_flops"]) == float(packed["train_flops"])
    text = (tmp_path / "report.md").read_text()
    assert section(text, "Throughput and memory")[1][:3] == ["no_radius_seed42", "62.500", "0.016"]


def test_without_the_reference_there_are_no_differences(gravity, tmp_path):
    write_report("gravity", gravity[1:], 3, "ngt", tmp_path)
    assert "There is no finished pair of ngt and another contender." in (tmp_path / "report.md").read_text()


def test_pages_and_figures_of_runs_are_linked(gravity, tmp_path, monkeypatch):
    page, figure = tmp_path / "coords_ngt_seed42.html", tmp_path / "runs" / "ngt_seed42" / "sine_parameters.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"\x89PNG")
    gravity[0] = dataclasses.replace(gravity[0], coordinates_page=page, sine_figure=figure)
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- [coords_ngt_seed42](coords_ngt_seed42.html)" in text
    assert "![Sine activations of ngt_seed42](runs/ngt_seed42/sine_parameters.png)" in text
    html = (tmp_path / "report.html").read_text()
    assert '<a href="coords_ngt_seed42.html">' in html
    assert html.count('<img alt="') == 1
    monkeypatch.setitem(sys.modules, "plotly", None)
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert html.count('<img alt="') == 3
    assert "Interactive figures need plotly: pip install &#x27;psann_jax[coordinates]&#x27;" in html
    assert "<script" not in html


def test_a_diverged_run_comes_last(gravity, tmp_path):
    gravity[0] = make_outcome(gravity[0].case, math.nan, {0: 9.0, 20: math.nan, 40: math.nan})
    write_report("gravity", gravity, 3, "ngt", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert section(text, "Leaderboard")[-1][:3] == ["ngt", "1", "nan"]
    assert section(text, "Best and last losses")[-1][:2] == ["ngt_seed42", "nan"]


def test_one_diverged_seed_of_several_leaves_a_report(tmp_path):
    cases = all_cases(small_sweep(seeds=(1, 2, 3, 4)))
    outcomes = [make_outcome(case, LOSSES[case.contender][case.seed - 1]) for case in cases]
    outcomes[4] = make_outcome(cases[4], math.nan, {0: 9.0, 20: math.nan, 40: math.nan})
    write_report("four", outcomes, 12, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    name = cases[4].contender
    assert section(text, "Leaderboard")[-1][:4] == [name, "4", "nan", "-"]
    assert next(row for row in section(text, "Differences") if row[0] == name)[6] == "no verdict: a run diverged"


def test_a_seed_that_diverged_without_a_result_counts(tmp_path):
    """Its training ended with an error; the mean of the other seeds would hide it."""
    cases = all_cases(small_sweep(seeds=(1, 2, 3, 4, 5)))
    outcomes = [make_outcome(case, (*LOSSES[case.contender], 2.5)[case.seed - 1]) for case in cases]
    for i, case in enumerate(cases):
        if case.contender == "ngt" or (case.contender, case.seed) == ("waveresnet", 5):
            outcomes[i] = Outcome(case, outcomes[i].folder, None, [], f"{DIVERGED}10 updates were not finite")
    write_report("five", outcomes, 15, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    rows = section(text, "Leaderboard")
    assert [row[:4] for row in rows] == [
        ["transformer", "5", "2.9100", "0.2408"],
        ["waveresnet", "5", "nan", "-"],
        ["ngt", "5", "nan", "-"],
    ]
    assert (rows[1][5], set(rows[2][5:])) == ("0.2500", {"-"})
    assert "The loss is nan if a run diverged" in text
    assert [row[6] for row in section(text, "Differences")] == ["no verdict: a run diverged"] * 2
    page = (tmp_path / "report.html").read_text()
    content = json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)[1])
    assert [group["finals"]["loss"]["mean"] is None for group in content["groups"]] == [False, True]
    assert [row["contender"] for row in content["differences"]] == ["waveresnet"]


def test_puzzles_have_a_column_for_solved_ones(tmp_path):
    common = default_config("sudoku")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    common.train.update(steps=40, batch_tokens=162, warmup_steps=4)
    contenders = {"relu": {"model.base": "sudoku"}, "wide": {"model.base": "sudoku", "model.d_mlp": 32}}
    cases = all_cases(sweep_config(common, contenders, seeds=(1, 2)))
    outcomes = [make_outcome(case, 1.0 + case.seed) for case in cases]
    for outcome, solved in zip(outcomes, (0.25, 0.5) * 2, strict=True):
        outcome.summary["val_solved"] = solved
    write_report("puzzles", outcomes, 4, "relu", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "generated puzzles; seeds 1, 2. Losses are mean cross entropies in nats per empty cell" in text
    assert "| contender | seeds | val loss | deviation | ppl | solved | accuracy |" in text
    assert "| wide | 2 | 2.5000 | 0.7071 | 12.18 | 0.5000 | 0.2500 |" in text
    assert [row["val_solved"] for row in read_csv(tmp_path / "results.csv")][:2] == ["0.25", "0.5"]


def test_results_of_different_code_are_marked(tmp_path):
    outcomes = [make_outcome(case, 3.0) for case in all_cases(small_sweep(seeds=(1,)))]
    write_report("one", outcomes, 3, "transformer", tmp_path)
    assert "Different code" not in (tmp_path / "report.md").read_text()
    older = [{**outcomes[0].codes[0], "code": "bbbb"}]
    outcomes = [outcomes[0], dataclasses.replace(outcomes[1], codes=older), dataclasses.replace(outcomes[2], codes=[])]
    write_report("one", outcomes, 3, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "not all trained by the same code" in text
    assert ["waveresnet_seed1", "psann_jax 0.1.0 code bbbb jax 1 flax 2 optax 3"] in section(text, "Different code")
    assert ["ngt_seed1", "not recorded"] in section(text, "Different code")
    assert [row["code"] for row in read_csv(tmp_path / "results.csv")] == ["aaaa", "bbbb", ""]


def test_scores_of_standard_tasks_are_averaged_over_the_seeds(tmp_path):
    cases = all_cases(small_sweep(seeds=(1, 2)), only=["waveresnet"])
    outcomes = [
        dataclasses.replace(
            make_outcome(case, 3.0),
            lm_eval={"limit": 8, "results": {"odd": {"acc,none": score, "acc_stderr,none": 0.1, "alias": "odd"}}},
        )
        for case, score in zip(cases, (0.25, 0.75), strict=True)
    ]
    write_report("tasks", outcomes, 2, "transformer", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "on the first 8 examples" in text
    assert section(text, "Standard tasks") == [["odd", "acc", "waveresnet", "2", "0.5000", "0.3536"]]
    assert outcomes[0].metrics()["lm_eval"]["odd"]["acc,none"] == 0.25
