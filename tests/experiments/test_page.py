"""The interactive report: its data, untrusted text, and its behaviour in a browser."""

import dataclasses
import json
import math
import re
import statistics

import numpy as np
import pytest

from psann_jax.config.io import default_config
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.comparisons import compare
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.page import page_content
from psann_jax.experiments.plots import pareto_front
from psann_jax.experiments.report import write_report
from psann_jax.experiments.statistics import mean_interval
from psann_jax.experiments.sweeps import sweep_config
from tests.support.browser import needs_browser, read_page
from tests.support.sweeps import make_outcome, small_sweep

EVIL = "</script><b>&lt;%{x}"
CONTENDERS = {
    "transformer": {"model.base": "transformer"},
    "evil": {"model.base": "waveresnet", "model.wave.interleave": True},
    "ngt": {"model.base": "ngt"},
}
# The third contender is better for every seed, by 0.2.
OFFSETS = {"transformer": 0.0, EVIL: -0.002, "ngt": -0.2}
STEPS = (0, 10, 20, 30, 40)


def outcome_of(case):
    """A run with accuracies, training losses and sample texts."""
    k, seed = list(OFFSETS).index(case.contender), case.seed
    end = 3.0 + OFFSETS[case.contender] + 0.01 * (seed * 7 % 5) + 0.003 * k * (seed * seed % 3)
    losses = {step: end + (40 - step) / 10 for step in STEPS}
    outcome = make_outcome(case, losses[40], losses)
    for row in outcome.rows:
        row["accuracy"] = 1 / row["loss"]
    outcome.summary["val_accuracy"] = 1 / losses[40]
    outcome.summary["tokens_per_s"] = 1000.0 + case.seed
    train = [{"kind": "train", "step": step, "loss": losses[step] - 0.5} for step in STEPS[1:]]
    texts = [
        {"prompt": prompt, "temperature": t, "text": f" {case.name} at {t}</script><i>\n  x", "finish": "length"}
        for prompt in ("", "The")
        for t in (0.0, 0.8)
    ]
    texts[3]["text"] = " \n"
    earlier = [{**text, "text": f" {case.name} at step 10"} for text in texts]
    rows = [*outcome.rows, *train, {"kind": "samples", "step": 10, "texts": earlier}]
    return dataclasses.replace(outcome, rows=rows, samples={"samples": texts})


def outcomes_of(seeds=(1, 2, 3, 4), **options):
    cases = all_cases(small_sweep(CONTENDERS, seeds=seeds, **options))
    names = {"evil": EVIL}  # a sweep refuses it, but a page must show any name
    return [
        outcome_of(dataclasses.replace(case, contender=names.get(case.contender, case.contender))) for case in cases
    ]


def content_of(outcomes, complete=True):
    finished = [o for o in outcomes if o.summary is not None]
    return page_content(finished, compare(finished, "transformer", complete=complete), "transformer")


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


# --- data -----------------------------------------------------------------------------------------------


def test_curves_are_means_ranges_and_intervals_over_the_seeds():
    outcomes = outcomes_of()
    group = content_of(outcomes)["groups"][0]
    runs = [o for o in outcomes if o.case.contender == "transformer"]
    curve = group["curves"]["loss"]
    assert curve["steps"] == [10, 20, 30, 40]
    for i, step in enumerate(STEPS[1:]):
        losses = [run.losses[step] for run in runs]
        expected = [statistics.fmean(losses), min(losses), max(losses), *mean_interval(losses)]
        found = [curve[key][i] for key in ("mean", "low", "high", "interval_low", "interval_high")]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(group["curves"]["perplexity"]["high"], np.exp(curve["high"]), rtol=1e-5)
    np.testing.assert_allclose(group["curves"]["train_loss"]["mean"], np.array(curve["mean"]) - 0.5, rtol=1e-6)
    assert group["costs"]["flops"] == pytest.approx([run.metrics()["train_flops"] for run in runs])
    assert group["finals"]["loss"]["runs"] == pytest.approx([run.val_loss for run in runs])


def test_an_interval_is_that_of_student():
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose([low, high], 2.5 + np.array([-1, 1]) * 3.182446305 * statistics.stdev([1, 2, 3, 4]) / 2)
    assert all(map(math.isnan, mean_interval([1.0, 2.0, 3.0])))
    assert all(map(math.isnan, mean_interval([1.0, 2.0, 3.0, math.nan])))


def test_with_few_seeds_there_is_no_interval_but_a_range():
    curve = content_of(outcomes_of(seeds=(1,)))["groups"][0]["curves"]["loss"]
    assert curve["interval_low"] == [None] * 4
    assert curve["low"] == curve["mean"] == curve["high"]


def test_differences_and_means_are_those_of_the_tables(tmp_path):
    outcomes = outcomes_of(budgets=("tokens", "flops"))
    write_report("page", outcomes, len(outcomes), "transformer", tmp_path)
    content = embedded((tmp_path / "report.html").read_text())
    text = (tmp_path / "report.md").read_text()
    for difference in content["differences"]:
        assert "| " + " | ".join(difference["cells"]) + " |" in text
        assert f"{difference['mean']:+.4f}" == difference["cells"][3]
    assert [d["verdict"] for d in content["differences"] if d["contender"] == "ngt"] == ["better"] * 2
    for group in content["groups"]:
        assert f"| {group['contender']} | 4 | {group['finals']['loss']['text']} |" in text
    assert [b["title"] for b in content["budgets"]] == ["equal training tokens", "equal training FLOPs"]


def test_a_diverged_run_leaves_gaps():
    outcomes = outcomes_of()
    bad = make_outcome(outcomes[0].case, math.nan, {0: 9.0, 10: 5.0, 20: math.nan, 40: math.nan})
    for row in bad.rows:
        row["accuracy"] = 0.1
    content = content_of([bad, *outcomes[1:]])
    curve = content["groups"][0]["curves"]["loss"]
    assert curve["steps"] == [10, 20, 40]
    assert [value is None for value in curve["high"]] == [False, True, True]
    assert content["groups"][0]["finals"]["loss"]["runs"][0] is None
    assert content["groups"][0]["finals"]["loss"]["mean"] is None


def test_long_curves_are_thinned_and_keep_their_ends():
    outcomes = outcomes_of(seeds=(1,))
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 5001)]
    outcomes[0] = dataclasses.replace(outcomes[0], rows=[*outcomes[0].rows, *rows])
    steps = content_of(outcomes)["groups"][0]["curves"]["train_loss"]["steps"]
    assert len(steps) == 300
    assert (steps[0], steps[-1]) == (1, 5000)


def test_puzzles_have_a_metric_of_solved_ones_and_no_texts():
    common = default_config("sudoku")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    common.train.update(steps=40, batch_tokens=162, warmup_steps=4)
    outcomes = [make_outcome(case, 1.0) for case in all_cases(sweep_config(common, {"relu": {}}, seeds=(1, 2)))]
    for outcome in outcomes:
        outcome.summary["val_solved"] = 0.5
        for row in outcome.rows:
            row |= {"accuracy": 0.5, "solved": 0.5}
    content = page_content(outcomes, [], "relu")
    assert "solved" in [metric["key"] for metric in content["metrics"]]
    assert content["metrics"][0]["title"] == "validation loss (nats per empty cell)"
    assert content["samples"] == []


def test_untrusted_text_is_no_markup(tmp_path):
    outcomes = outcomes_of()
    outcomes[5] = Outcome(outcomes[5].case, outcomes[5].folder, None, [], "out of </script>")
    write_report(EVIL, outcomes, 12, "transformer", tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 3
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', text), "the page must work offline"
    assert embedded(text)["samples"][0]["texts"][0]["text"].endswith("</script><i>\n  x")
    assert len(text) < 6e6


# --- in a browser ---------------------------------------------------------------------------------------

_LOOK = """
  const look = async (name) => {
    await settled();
    seen[name] = {
      ...Object.fromEntries(["curves", "differences", "front"].map((id) => [id, {
        data: byId(id).data.map((t) => (
          { name: t.name, x: t.x, y: t.y, error_x: t.error_x, marker: t.marker, hovertext: t.hovertext })),
        title: byId(`${id}-title`).textContent, note: byId(`${id}-note`).textContent,
        range: byId(id).layout.yaxis.range, xtitle: byId(id).layout.xaxis.title.text,
        ticks: byId(id).layout.yaxis.ticktext,
        drawn: byId(id).querySelectorAll(".trace").length,
      }])),
      status: byId("status").textContent,
      finals: [...byId("finals").rows].map((row) => [...row.cells].map((cell) => cell.textContent)),
      texts: [...byId("texts").rows].map((row) => [...row.cells].map((cell) => cell.textContent)),
      samples: !byId("samples").hidden,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
  };
  const set = (id, value) => {
    byId(id).focus();
    if (document.activeElement !== byId(id)) throw new Error(`${id} cannot be focused`);
    byId(id).value = value;
    byId(id).dispatchEvent(new Event("change"));
  };
  await look("start");
"""

# Acts like a reader with a keyboard: focuses and changes controls.
_READER = (
    _LOOK
    + """
  seen.buttons = [...document.querySelectorAll(".modebar-btn")].map((button) => button.dataset.title);
  set("band", "interval"); await look("interval");
  set("budget", "flops"); await look("flops"); set("budget", "tokens");
  set("metric", "accuracy"); await look("accuracy");
  set("metric", "perplexity"); await look("perplexity");
  set("metric", "loss"); set("cost", "parameters"); set("axis", "seconds"); await look("costs");
  set("prompt", 1); set("seed", 4); await look("texts");
  seen.steps = [...byId("step").options].map((option) => option.textContent);
  set("step", seen.steps[1]); await look("earlier texts"); set("step", seen.steps[0]);
  const box = byId("contenders").querySelectorAll("input")[1];
  box.focus(); box.click(); await look("without");
  byId("none").click(); await look("reference");
  byId("all").click(); await look("all");
"""
)


def look_at(folder, outcomes, reader=_LOOK, size=(1200, 900)):
    """The data of the report's page, and what a browser displays."""
    folder.mkdir(exist_ok=True)
    write_report("page", outcomes, len(outcomes), "transformer", folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return embedded(text), read_page(text, reader, folder, size)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return look_at(tmp_path_factory.mktemp("page") / "out", outcomes_of(budgets=("tokens", "flops")), _READER)


def traces(shown, name):
    return {trace["name"]: trace for trace in shown[name]["data"]}


ESCAPED = "&lt;/script&gt;&lt;b&gt;&amp;lt;%{x}"


@needs_browser
def test_a_browser_draws_means_and_bands(seen):
    content, shown = seen
    assert shown["errors"] == []
    assert "Zoom" in shown["buttons"]
    assert not [title for title in shown["buttons"] if "Share" in title or "Cloud" in title], "results stay here"
    curve = content["groups"][0]["curves"]["loss"]
    drawn = traces(shown["start"], "curves")
    assert set(drawn) == {f"{band}{name}" for band in ("", "band of ") for name in ("transformer", ESCAPED, "ngt")}
    assert drawn["transformer"]["y"] == curve["mean"]
    np.testing.assert_allclose(drawn["transformer"]["x"], np.array(curve["steps"]) * 64)
    assert drawn["band of transformer"]["y"] == [*curve["high"], *curve["low"][::-1]]
    assert "range from the lowest to the highest seed" in shown["start"]["curves"]["note"]
    interval = traces(shown["interval"], "curves")["band of transformer"]["y"]
    assert interval == [*curve["interval_high"], *curve["interval_low"][::-1]]
    assert "95 % t interval of the mean" in shown["interval"]["curves"]["note"]
    assert shown["start"]["curves"]["drawn"] == 6
    assert f"<b>{ESCAPED}</b>" in drawn[ESCAPED]["hovertext"][0]


@needs_browser
def test_a_browser_draws_the_differences_of_the_tables(seen):
    content, shown = seen
    means = traces(shown["start"], "differences")["means"]
    rows = [d for d in content["differences"] if d["budget"] == "tokens"]
    rows.sort(key=lambda d: -d["mean"])
    assert means["x"] == [d["mean"] for d in rows]
    np.testing.assert_allclose(np.add(means["x"], means["error_x"]["array"]), [d["high"] for d in rows])
    np.testing.assert_allclose(np.subtract(means["x"], means["error_x"]["arrayminus"]), [d["low"] for d in rows])
    assert shown["start"]["differences"]["ticks"] == [f"{ESCAPED}<br>no difference shown", "ngt<br>better"]
    assert means["marker"]["color"][0] == "#fff", "open: no verdict"
    assert means["marker"]["color"][1] != "#fff"
    assert rows[1]["cells"][4] in means["hovertext"][1]
    pairs = traces(shown["start"], "differences")["seeds"]["x"]
    assert pairs == [*rows[0]["pairs"], *rows[1]["pairs"]]


@needs_browser
def test_the_budget_and_the_metric_change_what_is_drawn(seen):
    content, shown = seen
    flops = next(g for g in content["groups"] if g["contender"] == "ngt" and g["budget"] == "flops")
    tokens = next(g for g in content["groups"] if g["contender"] == "ngt" and g["budget"] == "tokens")
    assert traces(shown["start"], "front")["ngt"]["x"] == pytest.approx([np.mean(tokens["costs"]["flops"])])
    assert traces(shown["flops"], "front")["ngt"]["x"] == pytest.approx([np.mean(flops["costs"]["flops"])])
    assert "equal training FLOPs" in shown["flops"]["status"]
    assert traces(shown["accuracy"], "curves")["ngt"]["y"] == tokens["curves"]["accuracy"]["mean"]
    assert shown["accuracy"]["differences"]["note"].endswith("Only the validation loss has intervals and verdicts.")
    reference = content["groups"][0]["finals"]["accuracy"]["runs"]
    accuracy = traces(shown["accuracy"], "differences")
    expected = np.subtract(tokens["finals"]["accuracy"]["runs"], reference)
    np.testing.assert_allclose(accuracy["means"]["x"][0], expected.mean())
    np.testing.assert_allclose(accuracy["seeds"]["x"][:4], expected)
    assert not accuracy["means"]["error_x"]["visible"]
    assert shown["accuracy"]["differences"]["xtitle"] == "difference (right is better)"
    np.testing.assert_allclose(
        traces(shown["perplexity"], "front")["ngt"]["y"], [math.exp(tokens["finals"]["loss"]["mean"])], rtol=1e-5
    )


@needs_browser
def test_the_front_is_that_of_the_chosen_means(seen):
    content, shown = seen
    groups = [g for g in content["groups"] if g["budget"] == "tokens"]
    for name, cost in (("start", "flops"), ("costs", "parameters")):
        points = [(np.mean(g["costs"][cost]), g["finals"]["loss"]["mean"]) for g in groups]
        front = pareto_front(points)
        line = traces(shown[name], "front")["Pareto front"]
        np.testing.assert_allclose(line["x"], [*(points[i][0] for i in front), max(cost for cost, _ in points)])
        np.testing.assert_allclose(line["y"], [points[i][1] for i in [*front, front[-1]]])
        assert [row[-1] for row in shown[name]["finals"]] == ["yes" if i in front else "no" for i in range(3)]
    assert [row[:3] for row in shown["start"]["finals"]][2] == ["ngt", "4", groups[2]["finals"]["loss"]["text"]]
    flops = np.mean(groups[2]["costs"]["flops"])
    assert shown["start"]["finals"][2][3] == f"{flops:.3e}".replace("e+0", "e+")
    assert shown["costs"]["finals"][2][3] == "12,345"
    seconds = traces(shown["costs"], "curves")["ngt"]["x"][-1]
    assert seconds == pytest.approx(np.mean(groups[2]["costs"]["seconds"]))


@needs_browser
def test_contenders_can_be_removed_and_added_again(seen):
    _, shown = seen
    assert not [name for name in traces(shown["without"], "curves") if ESCAPED in name]
    assert [row[0] for row in shown["without"]["finals"]] == ["transformer", "ngt"]
    assert [row[0] for row in shown["without"]["texts"]] == ["transformer", "ngt"]
    assert shown["without"]["differences"]["ticks"] == ["ngt<br>better"]
    assert [row[0] for row in shown["reference"]["finals"]] == ["transformer"]
    assert shown["reference"]["differences"]["data"] == []
    assert "no pair of the reference" in shown["reference"]["differences"]["note"]
    assert [row[0] for row in shown["all"]["finals"]] == ["transformer", EVIL, "ngt"]


@needs_browser
def test_sample_texts_are_shown_unchanged(seen):
    _, shown = seen
    assert shown["start"]["texts"][1] == [EVIL, *(f" {EVIL}_seed1 at {t}</script><i>\n  x" for t in ("0.0", "0.8"))]
    assert shown["texts"]["texts"][0][1] == "The transformer_seed4 at 0.0</script><i>\n  x"
    assert shown["texts"]["texts"][0][2] == "The (only white space)"
    assert shown["steps"] == ["after the last update", "after 10 updates"]
    assert shown["earlier texts"]["texts"][0] == ["transformer", *["The transformer_seed4 at step 10"] * 2]


@needs_browser
def test_one_contender_with_one_seed_in_a_narrow_window(tmp_path):
    outcomes = [o for o in outcomes_of((1,)) if o.case.contender == "transformer"]
    for i, o in enumerate(outcomes):
        rows = [row for row in o.rows if row["kind"] != "samples"]
        outcomes[i] = dataclasses.replace(o, rows=rows, samples=None)
    content, shown = look_at(tmp_path / "out", outcomes, size=(500, 900))
    assert shown["errors"] == []
    assert content["differences"] == []
    assert shown["start"]["overflow"] <= 0
    assert not shown["start"]["samples"]
    assert traces(shown["start"], "curves")["transformer"]["y"] == content["groups"][0]["curves"]["loss"]["mean"]


@needs_browser
def test_failed_and_diverged_runs_do_not_flatten_the_figures(tmp_path):
    outcomes = outcomes_of()
    outcomes[1] = Outcome(outcomes[1].case, outcomes[1].folder, None, [], "out of memory")
    for i, end in ((4, math.nan), (7, 60.0)):
        outcomes[i] = make_outcome(outcomes[i].case, end, {0: 9.0, 10: 7.0, 20: 6.0, 30: end, 40: end})
        for row in outcomes[i].rows:
            row["accuracy"] = 0.1
    _, shown = look_at(tmp_path / "out", outcomes)
    assert shown["errors"] == []
    assert shown["start"]["front"]["range"][1] < 4
    assert shown["start"]["front"]["note"].endswith("Runs above the axis, or diverged: 2.")
    assert shown["start"]["curves"]["range"][1] < 12
