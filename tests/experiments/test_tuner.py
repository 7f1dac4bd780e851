"""The two stages of a tuned sweep: interrupted and resumed anywhere, with a changed grid, and for real."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest

from psann_jax.cli import sweep as command
from psann_jax.config.io import to_dict
from psann_jax.experiments import report, runner, tuner
from psann_jax.experiments.tuning import Tuning
from psann_jax.utils.errors import UserError
from tests.experiments.test_tuning import tuned_sweep
from tests.support.processes import TESTS, environment
from tests.support.sweeps import make_outcome
from tests.support.tiny import write_text

TWO = {"transformer": {"model.base": "transformer"}, "ngt": {"model.base": "ngt"}}
BEST = {"transformer": 4e-3, "ngt": 1e-3}


@pytest.fixture
def started(monkeypatch):
    """Replaces training by the files that it leaves, and returns the names of the runs; some errors can be set.

    The loss grows with the distance of the rate from the contender's best one.
    """

    class Runs(list):
        """The names; `errors` has the error of a run, or an exception to raise."""

    runs = Runs()
    runs.errors = {}

    def train(case, folder, place):
        runs.append(f"{folder.parent.name}/{case.name}")
        error = runs.errors.get(case.name)
        if isinstance(error, BaseException):
            raise error
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_dict(case.config)))
        if error is not None:
            return error
        rate = case.config.train.lr / BEST[case.contender]
        outcome = make_outcome(case, 3.0 + max(rate, 1 / rate) + 0.01 * case.seed)
        (folder / "summary.json").write_text(json.dumps(outcome.summary))
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, outcome.rows)) + "\n")
        return None

    monkeypatch.setattr(report, "_draw", lambda finished, workdir: [])  # slow, and tested elsewhere
    monkeypatch.setattr(tuner, "train", train)
    monkeypatch.setattr(runner, "run_case", lambda case, folder, place, lm_eval: train(case, folder, place))
    monkeypatch.setattr(runner, "finished", lambda case, folder, lm_eval: runner.trained(case, folder))
    return runs


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Runs the command with a tuning stage and flags, in the workdir tmp_path/out."""

    def start(tuning, *flags, **options):
        found = tuned_sweep(tuning, **{"contenders": TWO, **options})
        monkeypatch.setattr(command, "load_config_file", lambda path: found)
        command.main(["--config=configs/sweeps/two.py", f"--workdir={tmp_path / 'out'}", *flags])

    return start


GRID = Tuning({"train.lr": (1e-3, 2e-3, 4e-3)})
TRIALS = [f"tuning/{name}_lr{lr}_seed0" for name in TWO for lr in (0.001, 0.002, 0.004)]
COMPARED = [f"runs/{name}_lr{BEST[name]}_seed{seed}" for seed in (1, 2) for name in TWO]


def test_the_chosen_settings_are_compared(started, sweep, tmp_path):
    sweep(GRID)
    assert started == TRIALS + COMPARED
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["path"].split("/")[-1] for row in summary["results"]] == [name[5:] for name in COMPARED]
    tuning = summary["tuning"]
    assert (tuning["complete"], tuning["seeds"], tuning["valid_fraction"]) == (True, [0], 0.04)
    assert {name: choice["settings"] for name, choice in tuning["chosen"].items()} == {
        name: {"train.lr": lr} for name, lr in BEST.items()
    }
    assert {name: choice["edges"] for name, choice in tuning["chosen"].items()} == {
        "transformer": {"train.lr": "highest"},
        "ngt": {"train.lr": "lowest"},
    }
    assert [trial["val_loss"] for trial in tuning["trials"][:3]] == [7.0, 5.0, 4.0]
    with (tmp_path / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["comparison"] * 4 + ["tuning"] * 6
    assert rows[0]["settings"] == "train.lr=0.004"
    page = (tmp_path / "out/report.md").read_text()
    assert "3 trials of each contender, seed 0, 40 updates of 64 tokens" in page
    assert "of which 4 % were held out. No trial read the validation data of the comparison (valid.txt)." in page
    assert "| transformer | train.lr=0.004 | 4.0000 | - | train.lr: highest value |" in page
    assert "small differences decide nothing" in page, "neither seeds nor windows show the noise"
    assert "| ngt | train.lr=0.004 | 1 | 7.0000 | - | - |" in page
    assert "<h2>Trials</h2>" in (tmp_path / "out/report.html").read_text()
    started.clear()
    sweep(GRID)
    assert started == []


@pytest.mark.parametrize(
    "at", [at if at % 3 == 0 else pytest.param(at, marks=pytest.mark.slow) for at in range(len(TRIALS + COMPARED))]
)
def test_an_interrupted_sweep_continues_where_it_was(started, sweep, at, tmp_path):
    everything = TRIALS + COMPARED
    started.errors = {everything[at].split("/")[1]: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep(GRID)
    assert started == everything[: at + 1]
    started.clear()
    started.errors = {}
    sweep(GRID)
    assert started == everything[at:]
    assert "4 of 4 finished" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize("is_other", [False, True], ids=["same settings", "other settings"])
def test_runs_without_tuning_are_not_reported_beside_trials(started, sweep, tmp_path, is_other):
    sweep(None, *["--config.train.weight_decay=0.5"] * is_other)
    started.errors = {"ngt_lr0.001_seed0": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep(GRID)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["n_cases"], summary["results"], len(summary["tuning"]["trials"])) == (4, [], 3)
    assert "0 of 4 finished, 0 failed." in (tmp_path / "out/report.md").read_text()
    started.errors = {}
    sweep(GRID)
    paths = {row["path"] for row in json.loads((tmp_path / "out/summary.json").read_text())["results"]}
    assert paths == {str(tmp_path / "out" / name) for name in COMPARED}


def test_a_larger_grid_runs_what_is_missing(started, sweep):
    sweep(GRID)
    started.clear()
    sweep(Tuning({"train.lr": (5e-4, 1e-3, 2e-3, 4e-3)}))
    assert started == ["tuning/transformer_lr0.0005_seed0", "tuning/ngt_lr0.0005_seed0"], "the choice is the same"
    started.clear()
    sweep(Tuning({"train.lr": (1e-3, 2e-3)}))
    assert started == [f"runs/transformer_lr0.002_seed{seed}" for seed in (1, 2)], "another choice of one contender"


def test_a_grid_is_extended_while_the_best_value_is_on_an_edge(started, sweep, tmp_path):
    tuning = Tuning({"train.lr": (5e-4, 1e-3)}, extend=2)
    sweep(tuning)
    assert started[:8] == [
        f"tuning/{name}_lr{lr}_seed0" for rates in ((5e-4, 1e-3), (2e-3,), (4e-3,)) for name in TWO for lr in rates
    ]
    assert started[8:] == COMPARED
    assert "by up to 2 values" in (tmp_path / "out/report.md").read_text()
    started.clear()
    sweep(tuning)
    assert started == []


def test_a_grid_ends_where_a_setting_does(started, sweep, tmp_path, monkeypatch):
    """The best dropout is the highest, and 1.2 would be the next; the rate is still extended."""
    recorded = tuner.train

    def train(case, folder, place):
        error = recorded(case, folder, place)
        summary = json.loads((folder / "summary.json").read_text())
        loss = summary["val_loss"] - case.config.model.dropout
        (folder / "summary.json").write_text(json.dumps(summary | {"val_loss": loss}))
        return error

    monkeypatch.setattr(tuner, "train", train)
    tuning = Tuning({"model.dropout": (0.3, 0.6), "train.lr": (1e-3, 2e-3)}, extend=2)
    sweep(tuning)
    names = [name.split("/")[1] for name in started if name.startswith("tuning/")]
    assert len(names) == len(set(names)) == 2 * 2 * 5
    assert not any("dropout1.2" in name for name in names)
    assert "model.dropout: highest value" in (tmp_path / "out/report.md").read_text()
    started.clear()
    sweep(tuning)
    assert started == []


RUNGS = {"s": {"model.d_model": 16}, "l": {"model.d_model": 32}}


def test_every_rung_is_tuned_and_compared_with_its_own_choice(started, sweep, tmp_path, monkeypatch):
    """The best rate of the larger rung is a quarter; only its grid is extended, for both contenders."""
    best_of = {("transformer", 16): 2e-3, ("transformer", 32): 5e-4, ("ngt", 16): 1e-3, ("ngt", 32): 2.5e-4}

    monkeypatch.setattr(sys.modules[__name__], "BEST", found := {})
    recorded = tuner.train

    def train(case, folder, place):
        found[case.contender] = best_of[case.contender, case.config.model.d_model]
        return recorded(case, folder, place)

    monkeypatch.setattr(tuner, "train", train)
    monkeypatch.setattr(runner, "run_case", lambda case, folder, place, lm_eval: train(case, folder, place))
    tuning = Tuning({"train.lr": (5e-4, 1e-3, 2e-3, 4e-3)}, extend=1)
    sweep(tuning, rungs=RUNGS)
    trials = [f"{name}_rung{rung}_lr{lr}_seed0" for rung in "sl" for name in TWO for lr in (5e-4, 1e-3, 2e-3, 4e-3)]
    more = [f"{name}_rungl_lr0.00025_seed0" for name in TWO]
    assert started[:18] == [f"tuning/{name}" for name in trials + more]
    chosen = {"s": {"transformer": 2e-3, "ngt": 1e-3}, "l": {"transformer": 5e-4, "ngt": 2.5e-4}}
    runs = [f"{n}_rung{rung}_lr{chosen[rung][n]}_seed{seed}" for seed in (1, 2) for rung in "sl" for n in TWO]
    assert started[18:] == [f"runs/{name}" for name in runs]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {key: of["settings"]["train.lr"] for key, of in summary["tuning"]["chosen"].items()} == {
        f"{n} rung={rung}": chosen[rung][n] for rung in "sl" for n in TWO
    }
    page = (tmp_path / "out/report.md").read_text()
    assert "Rung s: 4 trials of each contender, seed 0, 40 updates of 64 tokens. Rung l: 5 trials" in page
    assert "| ngt rung=l | train.lr=0.00025 |" in page
    with (tmp_path / "out/results.csv").open() as file:
        assert next(csv.DictReader(file))["settings"] == "rung=s train.lr=0.002"
    started.clear()
    sweep(tuning, rungs=RUNGS)
    assert started == []


def test_a_diverged_trial_is_a_result(started, sweep, tmp_path):
    error = "train.max_bad_steps: 10 updates in a row were not finite, the last at step 12"
    started.errors = {"transformer_lr0.004_seed0": error}
    sweep(GRID)
    assert started[6:8] == ["runs/transformer_lr0.002_seed1", "runs/ngt_lr0.001_seed1"]
    assert "| transformer | train.lr=0.004 | 1 | inf | - | diverged |" in (tmp_path / "out/report.md").read_text()
    started.clear()
    sweep(GRID)
    assert started == [], "it is not repeated"


def test_a_contender_whose_trials_all_diverge_is_named(started, sweep):
    started.errors = {name.split("/")[1]: "train.max_bad_steps: 10 updates" for name in TRIALS[3:]}
    with pytest.raises(UserError, match="tuning: all trials of ngt diverged; try other values"):
        sweep(GRID)
    assert started == TRIALS


def test_a_failed_trial_ends_the_stage_and_is_tried_again(started, sweep, tmp_path):
    started.errors = {"transformer_lr0.001_seed0": "out of memory"}
    with pytest.raises(UserError, match=r"tuning: did not finish: transformer_lr0\.001_seed0; the same command"):
        sweep(GRID)
    assert started == TRIALS
    page = (tmp_path / "out/report.md").read_text()
    assert "6 of 6 trials have ended, so nothing is chosen yet" in page
    assert "| transformer | train.lr=0.001 | 1 | inf | - | failed: out of memory |" in page
    started.clear()
    started.errors = {}
    sweep(GRID)
    assert started == [TRIALS[0], *COMPARED]


def test_a_dry_run_lists_both_stages(started, sweep, capsys):
    sweep(GRID, "--dry_run")
    text = capsys.readouterr().out
    assert "out/tuning: 6 runs, 0 of them finished" in text
    assert "out: 4 runs, 0 of them finished" in text
    assert text.count("with what the trials choose") == 4
    assert started == []
    sweep(GRID)
    capsys.readouterr()
    sweep(GRID, "--dry_run")
    text = capsys.readouterr().out
    assert "out/tuning: 6 runs, 6 of them finished" in text
    assert "transformer_lr0.004_seed1" in text


def test_selected_contenders_alone_are_tuned(started, sweep):
    sweep(GRID, "--bases=ngt", "--seeds=7")
    assert started == [*TRIALS[3:], "runs/ngt_lr0.001_seed7"]


def test_another_budget_needs_the_reference_tuned(started, sweep):
    sweep(GRID, "--bases=ngt", "--seeds=7", budgets=("flops",))
    assert started == [*TRIALS, "runs/ngt_lr0.001_flops_seed7"]


def test_noresume_refuses_trials(started, sweep):
    started.errors = {"transformer_lr0.002_seed0": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep(GRID)
    with pytest.raises(UserError, match="holds runs of this sweep"):
        sweep(GRID, "--noresume")


def test_trials_of_other_settings_are_refused(started, sweep):
    sweep(GRID)
    with pytest.raises(UserError, match=r"tuning/transformer_lr0\.001_seed0: holds a run with other settings"):
        sweep(Tuning({"train.lr": (1e-3, 2e-3, 4e-3)}, valid_fraction=0.1))


def test_choices_on_other_text_are_not_used_for_new_runs(started, sweep, tmp_path):
    sweep(GRID)
    trial = tmp_path / "out/tuning/ngt_lr0.001_seed0"
    (trial / "code.json").write_text('{"trained_by": [], "data": "another"}')
    started.clear()
    sweep(GRID)
    for options in (("--seeds=1,2,3",), ("--seeds=4",)):
        with pytest.raises(UserError, match=r"tuning/ngt_lr0\.001_seed0: was trained on another content of builtin"):
            sweep(GRID, *options)
    with pytest.raises(UserError, match=r"tuning/ngt_lr0\.001_seed0: was trained on another content"):
        sweep(Tuning({"train.lr": (1e-3, 2e-3, 4e-3, 8e-3)}))
    assert started == []


# --- with real processes --------------------------------------------------------------------------------

SWEEP = """
from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.experiments.tuning import Tuning

def get_config():
    common = default_config("vanilla")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16)
    common.data.update(max_length=16, sources=("TEXT",), valid_sources=("VALID",), cache_dir="CACHE")
    common.data.tokenizer.kind = "bytes"
    common.train.update(batch_tokens=64, steps=30, warmup_steps=1, precision="fp32")
    common.eval.max_tokens = 512
    contenders = {"vanilla": {"model.base": "vanilla"}, "wide": {"model.base": "vanilla", "model.d_mlp": 32}}
    return sweep_config(common, contenders, seeds=(1,), tuning=Tuning({"train.lr": (1e-3, 1e30)}))
"""


@pytest.mark.slow
def test_a_real_sweep_of_two_stages_is_interrupted_and_resumed(tmp_path):
    valid = write_text(tmp_path / "valid.txt", n_lines=100, seed=1)
    text = SWEEP.replace("TEXT", str(write_text(tmp_path / "text.txt"))).replace("VALID", str(valid))
    (tmp_path / "two.py").write_text(text.replace("CACHE", str(tmp_path / "cache")))
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "psann_jax", "sweep", f"--config={tmp_path / 'two.py'}", f"--workdir={out}"]
    first = subprocess.Popen(arguments, env=environment(), cwd=TESTS.parent, start_new_session=True)
    while not (out / "tuning/wide_lr0.001_seed0").exists() and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=300) != 0
    finished = (out / "tuning/vanilla_lr0.001_seed0/summary.json").stat().st_mtime_ns
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), cwd=TESTS.parent, timeout=900)
    assert done.returncode == 0, done.stderr
    assert (out / "tuning/vanilla_lr0.001_seed0/summary.json").stat().st_mtime_ns == finished
    report = (out / "report.md").read_text()
    assert "2 of 2 finished, 0 failed" in report
    assert "diverged" in report
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["vanilla_lr0.001_seed1", "wide_lr0.001_seed1"]
    config = json.loads((out / "tuning/wide_lr0.001_seed0/config.json").read_text())
    assert (config["data"]["valid_sources"], config["data"]["valid_fraction"]) == ([], 0.04)


@pytest.mark.slow
def test_runs_at_once_are_interrupted_and_resumed_with_another_number(default_signals, tmp_path):
    """Nothing is prepared at the start, and nothing is done twice."""
    valid = write_text(tmp_path / "valid.txt", n_lines=100, seed=1)
    text = SWEEP.replace("TEXT", str(write_text(tmp_path / "text.txt"))).replace("VALID", str(valid))
    text = text.replace("batch_tokens=64, steps=30", "batch_tokens=1024, steps=400").replace("1e30", "2e-3")
    (tmp_path / "two.py").write_text(text.replace("CACHE", str(tmp_path / "cache")))
    arguments = [sys.executable, "-m", "psann_jax", "sweep", f"--config={tmp_path / 'two.py'}"]

    def start(name, jobs):
        command = [*arguments, f"--workdir={tmp_path / name}", f"--jobs={jobs}"]
        return subprocess.Popen(
            command, env=environment(), cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first, tuning = start("out", 2), tmp_path / "out/tuning"
    train_both = False
    while not train_both:
        rows = [path for path in tuning.glob("*/metrics.jsonl") if path.stat().st_size > 500]
        train_both = len([path for path in rows if not path.with_name("summary.json").exists()]) == 2
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 143
    assert "SIGTERM received: waiting for all runs to save their state\n" in errors
    assert sum("state saved" in path.read_text() for path in tuning.glob("*/log.txt")) == 2
    done = start("out", 3)
    _, errors = done.communicate(timeout=900)
    assert done.returncode == 0, errors
    logs = {path.parent.name: path.read_text() for path in (tmp_path / "out").glob("*/*/log.txt")}
    assert sum(log.count(" psann_jax.main ") for log in logs.values()) == 6 + 2
    assert sum("resumed " in log for log in logs.values()) == 2
    one = start("one", 1)
    _, errors = one.communicate(timeout=900)
    assert one.returncode == 0, errors
    losses = []
    for name in ("out", "one"):
        with (tmp_path / name / "results.csv").open() as file:
            losses.append({row["path"].split("/")[-1]: float(row["val_loss"]) for row in csv.DictReader(file)})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "sums may be rounded differently on fewer cores"
