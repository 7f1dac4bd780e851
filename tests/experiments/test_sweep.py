"""Sweeps: what is run, what is not run again, and the reports."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest

from psann_jax.config import ConfigError
from psann_jax.config.io import default_config, to_dict
from psann_jax.experiments import sweep as command
from psann_jax.experiments.report import Outcome, write_report
from psann_jax.experiments.sweeps import all_cases, flops_per_token, folders, pairs, sweep_config
from psann_jax.models.network import build
from psann_jax.utils.errors import UserError

CONTENDERS = {
    "transformer": {"model.base": "transformer"},
    "waveresnet": {"model.base": "waveresnet", "model.wave.interleave": True},
    "ngt": {"model.base": "ngt"},
}


PICTURE = b"\x89PNG"


def small(**options):
    common = default_config("transformer")
    common.model.update(d_model=32, n_layers=2, n_heads=4, d_mlp=256, vocab_size=500)
    common.data.max_length = 16
    common.train.update(steps=40, batch_tokens=64, warmup_steps=4, precision="fp32")
    return sweep_config(common, CONTENDERS, **{"seeds": (1, 2), **options})


def test_every_base_gets_what_is_common():
    cases = all_cases(small())
    assert [case.name for case in cases] == [f"{c}_seed{s}" for s in (1, 2) for c in CONTENDERS]
    for case in cases:
        model, train = case.config.model, case.config.train
        assert (model.d_model, model.n_layers, model.d_mlp, train.steps, case.config.seed) == (
            32,
            2,
            256,
            40,
            case.seed,
        )
    assert cases[1].config.model.wave.interleave
    assert cases[1].config.model.positional_encoding == "rope"
    assert cases[2].config.model.repulsion.weight == default_config("ngt").model.repulsion.weight


def test_the_grid_multiplies_and_names():
    cases = all_cases(
        small(grid={"train.lr": (1e-3, 2e-3), "train.weight_decay": (0.0, 0.1)}, seeds=(5,)), only=["ngt"]
    )
    assert [case.name for case in cases] == [
        f"ngt_lr{lr}_weight_decay{decay}_seed5" for lr in (0.001, 0.002) for decay in (0.0, 0.1)
    ]
    assert [(case.config.train.lr, case.config.train.weight_decay) for case in cases][1] == (1e-3, 0.1)


def test_budgets():
    by_name = {
        case.name: case
        for case in all_cases(
            small(budgets=("flops", "parameters", "seconds"), seeds=(1,)),
            speed=lambda config: 200.0 if config.model.base == "ngt" else 100.0,
        )
    }
    reference = by_name["transformer_flops_seed1"].config
    for name in ("waveresnet", "ngt"):
        config = by_name[f"{name}_flops_seed1"].config
        cost = config.train.steps * flops_per_token(config)
        assert cost == pytest.approx(reference.train.steps * flops_per_token(reference), rel=0.02)
        other = by_name[f"{name}_parameters_seed1"].config
        counts = [build(c.model).n_params for c in (other, reference)]
        assert counts[0] == pytest.approx(counts[1], rel=0.02)
        assert other.train.steps == 40
    assert by_name["ngt_seconds_seed1"].config.train.steps == 80
    assert by_name["ngt_seconds_seed1"].config.train.warmup_steps == 8
    assert by_name["waveresnet_seconds_seed1"].config.train.steps == 40


def test_equal_configs_are_one_run():
    """The reference is the same under every budget."""
    places = folders(all_cases(small(budgets=("tokens", "flops", "parameters"), seeds=(1, 2))))
    assert len(places) == 18
    assert {case.contender: place for case, place in places.items() if place != case.name} == {
        "transformer": "transformer_seed2"
    }
    assert len(set(places.values())) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"train.lrr": (1,)}}, r"train\.lrr: of transformer: base transformer has no such setting"),
        ({"grid": {"model.wave.kernel": (3,)}}, r"model\.wave\.kernel: of ngt: base ngt has no such setting"),
        ({"grid": {"train.lr": ()}}, r"grid\.train\.lr: is empty"),
        ({"grid": {"train.lr": (-1.0,)}}, r"train\.lr: is -1"),
        ({"budgets": ("flop",)}, r"budgets: 'flop' is unknown, did you mean flops"),
        ({"seeds": ()}, "must not be empty"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        all_cases(small(**options))


def test_texts_and_puzzles_do_not_mix():
    contenders = {**CONTENDERS, "grids": {"model.base": "sudoku"}}
    common = default_config("transformer")
    common.train.batch_tokens = 81 * common.data.max_length
    with pytest.raises(ConfigError, match=r"contenders\.grids: has another task than transformer"):
        all_cases(sweep_config(common, contenders))


def test_an_unknown_contender_is_refused():
    with pytest.raises(ConfigError, match="--bases: 'ngr' is no contender, did you mean ngt"):
        all_cases(small(), only=["ngr"])


# --- reports ------------------------------------------------------------------------------------------


def outcome(case, loss):
    codes = [{"psann_jax": "0.1.0", "code": "aaaa", "jax": "1", "flax": "2", "optax": "3"}]
    rows = [{"kind": "eval", "step": step, "loss": loss + 10 / (step + 1)} for step in (0, 20, 40)]
    summary = {"steps": 40, "val_loss": loss, "val_ppl": math.exp(loss), "val_accuracy": 0.25, "tokens_per_s": 1000.0}
    summary |= {"n_params": 12345, "peak_memory_mb": 300.0, "train_loss": loss - 0.1}
    return Outcome(case, summary, rows, None, codes)


def test_the_report_says_what_is_shown_and_what_is_not(tmp_path):
    cases = all_cases(small(seeds=(1, 2, 3)))
    losses = {"transformer": (3.0, 3.1, 2.9), "waveresnet": (2.8, 2.91, 2.7), "ngt": (3.05, 3.02, 2.97)}
    outcomes = [outcome(case, losses[case.contender][case.seed - 1]) for case in cases]
    outcomes[-1] = Outcome(cases[-1], None, [], "the <disk> was full")
    write_report("three", outcomes, 9, "transformer", tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "8 of 9 finished, 1 failed" in text
    assert text.index("| waveresnet | 3 | 2.8033 | 0.1050 |") < text.index("| transformer | 3 | 3.0000 | 0.1000 |")
    assert "| waveresnet | transformer | 3 | -0.1967 |" in text
    assert " better |" in text
    assert "| ngt | transformer | 2 | -0.0150 | -0.0800 to +0.0500 | no difference shown |" in text
    assert "| ngt_seed3 | the <disk> was full |" in text
    page = (tmp_path / "report.html").read_text()
    assert "the &lt;disk&gt; was full" in page
    assert page.count("data:image/png;base64,") == 2
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["ok"] * 8 + ["error"]
    assert float(rows[0]["val_loss"]) == 3.0
    assert float(rows[0]["train_flops"]) == 40 * 64 * flops_per_token(cases[0].config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["seeds"], summary["n_cases"], len(summary["results"])) == ([1, 2, 3], 9, 9)
    assert len(list(pairs(cases, "transformer"))) == 6


def test_puzzles_are_swept_like_texts(tmp_path):
    common = default_config("sudoku")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    common.train.update(steps=40, batch_tokens=162, warmup_steps=4)
    contenders = {"relu": {}, "wide": {"model.d_mlp": 32}, "sine": {"model.mlp_activation": "sine"}}
    contenders = {name: {"model.base": "sudoku", **settings} for name, settings in contenders.items()}
    cases = all_cases(sweep_config(common, contenders, seeds=(1, 2), budgets=("tokens", "flops")))
    relu = cases[0].config
    # Per cell and iteration: a product a weight, and with all 81 cells for scores and values; backward is twice that.
    matrices = 4 * 16 * 16 + 2 * 16 * 16
    assert flops_per_token(relu) == 2 * (6 * matrices + 3 * 4 * 81 * 16)
    assert {c.contender: c.config.train.steps for c in cases if c.budget == "flops"} == {
        "relu": 40,
        "wide": round(40 * flops_per_token(relu) / flops_per_token(cases[1].config)),
        "sine": 40,
    }
    outcomes = [outcome(case, 1.0 + case.seed) for case in cases if case.budget == "tokens"]
    for made, solved in zip(outcomes, (0.25, 0.5, 0.75) * 2, strict=True):
        made.summary["val_solved"] = solved
    write_report("puzzles", outcomes, 12, "relu", tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "Puzzles: generated puzzles; seeds 1, 2. Losses are mean cross entropies in nats an empty cell" in text
    assert "| contender | seeds | val loss | deviation | ppl | solved | accuracy |" in text
    assert "| wide | 2 | 2.5000 | 0.7071 | 12.18 | 0.5000 | 0.2500 |" in text
    assert [row["val_solved"] for row in csv.DictReader((tmp_path / "summary.csv").open())][:2] == ["0.25", "0.5"]


def test_results_of_other_code_are_marked(tmp_path):
    outcomes = [outcome(case, 3.0) for case in all_cases(small(seeds=(1,)))]
    write_report("one", outcomes, 3, "transformer", tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "Other code" not in text
    assert "| ngt | 1 | 3.0000 | - | 20.09 |" in text
    assert "| ngt | transformer | 1 | +0.0000 | - | one seed says nothing | - |" in text
    older = [{**outcomes[0].codes[0], "code": "bbbb"}]
    outcomes = [outcomes[0], dataclasses.replace(outcomes[1], codes=older), dataclasses.replace(outcomes[2], codes=[])]
    write_report("one", outcomes, 3, "transformer", tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "differences may be the code's" in text
    assert "| waveresnet_seed1 | psann_jax 0.1.0 code bbbb jax 1 flax 2 optax 3 |" in text
    assert "| ngt_seed1 | not recorded |" in text
    assert [row["code"] for row in csv.DictReader((tmp_path / "summary.csv").open())] == ["aaaa", "bbbb", ""]


def test_scores_of_tasks_are_averaged_over_the_seeds(tmp_path):
    cases = all_cases(small(seeds=(1, 2)), only=["waveresnet"])
    outcomes = [
        dataclasses.replace(
            outcome(case, 3.0),
            lm_eval={"limit": 8, "results": {"odd": {"acc,none": score, "acc_stderr,none": 0.1, "alias": "odd"}}},
        )
        for case, score in zip(cases, (0.25, 0.75), strict=True)
    ]
    write_report("tasks", outcomes, 2, "transformer", tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "on the first 8 examples" in text
    assert "| odd | acc | waveresnet | 2 | 0.5000 | 0.3536 |" in text
    assert "stderr" not in text
    assert outcomes[0].metrics()["lm_eval"]["odd"]["acc,none"] == 0.25


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def runner(monkeypatch):
    """Training is replaced by what it leaves; contender ngt fails. The names of the runs that were made."""
    made = []

    def run(case, folder, lm_eval):
        made.append(case.name)
        if case.contender == "ngt":
            return "out of memory"
        if (folder / "summary.json").exists():
            return "no network"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(to_dict(case.config)))
        found = outcome(case, 3.0 + 0.1 * case.seed)
        (folder / "summary.json").write_text(json.dumps(found.summary))
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, found.rows)) + "\n")
        (folder / "code.json").write_text(json.dumps({"trained_by": found.codes}))
        (folder / "sine_parameters.png").write_bytes(PICTURE)
        return None

    monkeypatch.setattr(command, "run_case", run)
    return made


def start(monkeypatch, tmp_path, sweep, **flags):
    values = {"CONFIG": sweep, "WORKDIR": str(tmp_path / "out"), "_DRY_RUN": False, "_BASES": [], "_SEEDS": []}
    values |= {
        "_RESUME": True,
        "_WITH_LM_EVAL": False,
        "_LM_EVAL_TASKS": ["lambada_openai"],
        "_LM_EVAL_LIMIT": 8,
        "_LM_EVAL_PATH": None,
    }
    for name, value in (values | flags).items():
        monkeypatch.setattr(command, name, type("Flag", (), {"value": value}))
    monkeypatch.setattr(command, "default_workdir", lambda: Path("runs/sweeps/three"))
    command.main()


def test_only_what_is_missing_is_run(runner, monkeypatch, tmp_path, capsys):
    with pytest.raises(UserError, match="did not finish: ngt_seed1, ngt_seed2"):
        start(monkeypatch, tmp_path, small())
    assert len(runner) == 6
    assert "out of memory" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert json.loads((tmp_path / "out/runs/waveresnet_seed2/metrics.json").read_text())["val_loss"] == 3.2
    runner.clear()
    with pytest.raises(UserError, match="did not finish"):
        start(monkeypatch, tmp_path, small())
    assert runner == ["ngt_seed1", "ngt_seed2"]
    runner.clear()
    start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1", "7"], _DRY_RUN=True)
    assert runner == []
    shown = capsys.readouterr().out
    assert "2 runs, 1 of them finished" in shown


def test_a_failure_after_the_training_loses_no_loss(runner, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: True)
    start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1"])
    with pytest.raises(UserError, match="did not finish: transformer_seed1"):
        start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1"], _WITH_LM_EVAL=True)
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "1 of 1 finished, 1 failed" in text
    assert "| transformer | 1 | 3.1000 |" in text
    assert "| transformer_seed1 | no network |" in text
    metrics = json.loads((tmp_path / "out/runs/transformer_seed1/metrics.json").read_text())
    assert (metrics["status"], metrics["error"], metrics["val_loss"]) == ("error", "no network", 3.1)


def test_a_folder_of_other_settings_is_left_alone(runner, monkeypatch, tmp_path):
    start(monkeypatch, tmp_path, small(), _BASES=["transformer"])
    before = (tmp_path / "out" / "summary.csv").read_text()
    runner.clear()
    other = small()
    other.common.train.lr = 1.0
    with pytest.raises(UserError, match="holds a run of other settings"):
        start(monkeypatch, tmp_path, other, _BASES=["transformer"])
    assert runner == []
    assert (tmp_path / "out" / "summary.csv").read_text() == before


@pytest.mark.parametrize("name", ["summary.json", "config.json", "code.json"])
def test_a_broken_results_file_is_named_and_kept(runner, monkeypatch, tmp_path, name):
    start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1"])
    path = tmp_path / "out/runs/transformer_seed1" / name
    path.write_text("{")
    runner.clear()
    with pytest.raises(UserError, match=f"{name}: is not valid JSON"):
        start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1"])
    assert (runner, path.read_text()) == ([], "{")


def test_tasks_need_lm_eval(runner, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--with_lm_eval: lm_eval is not installed"):
        start(monkeypatch, tmp_path, small(), _WITH_LM_EVAL=True)
    assert runner == []


def test_without_resume_nothing_is_mixed(runner, monkeypatch, tmp_path):
    start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _SEEDS=["1"], _RESUME=False)
    with pytest.raises(UserError, match=r"--workdir: .*out holds runs of this sweep"):
        start(monkeypatch, tmp_path, small(), _BASES=["transformer"], _RESUME=False)
    assert runner == ["transformer_seed1"]


def test_seeds_are_numbers(runner, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--seeds: 'x' is no seed"):
        start(monkeypatch, tmp_path, small(), _SEEDS=["1", "x"])
