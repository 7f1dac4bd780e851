"""The sweep command: what runs, what is not repeated, and a real sweep end to end."""

import csv
import json
import shutil
import subprocess
import sys
import types

import pytest

from psann_jax.cli import sweep as command
from psann_jax.config.io import to_dict
from psann_jax.engines import local
from psann_jax.experiments import runner, stages
from psann_jax.experiments.data_check import data_fingerprint
from psann_jax.sample.prompts import sample_settings
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment
from tests.support.sweeps import make_outcome, small_sweep
from tests.support.tiny import write_text


@pytest.fixture
def trained_names(monkeypatch):
    """Replaces training by the files that it leaves, and returns the names of the runs; contender ngt fails."""
    names = []

    def run_case(case, folder, place, lm_eval):
        names.append(case.name)
        if case.contender == "ngt":
            return "out of memory"
        if (folder / "summary.json").exists():
            return "no network"
        written = folder.with_name(f".{folder.name}")  # renamed, as reports read folders while others are written
        written.mkdir(parents=True)
        (written / "config.json").write_text(json.dumps(to_dict(case.config)))
        outcome = make_outcome(case, 3.0 + 0.1 * case.seed)
        (written / "summary.json").write_text(json.dumps(outcome.summary))
        (written / "metrics.jsonl").write_text("\n".join(map(json.dumps, outcome.rows)) + "\n")
        start = {"trained_by": outcome.codes, "data": data_fingerprint(case.config.data)}
        (written / "code.json").write_text(json.dumps(start))
        (written / "sine_parameters.png").write_bytes(b"\x89PNG")
        (written / "samples.json").write_text(json.dumps({"step": 40, **sample_settings(()), "samples": []}))
        written.rename(folder)
        return None

    monkeypatch.setattr(runner, "run_case", run_case)
    return names


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Runs the command with flags on the small sweep, which the fixture's attribute `config` holds."""
    workdir = tmp_path / "out"

    def start(*flags):
        monkeypatch.setattr(command, "load_config_file", lambda path: start.config)
        command.main(["--config=configs/sweeps/three.py", f"--workdir={workdir}", *flags])

    start.config = small_sweep()
    return start


def test_only_missing_runs_are_done(trained_names, sweep, tmp_path, capsys):
    with pytest.raises(UserError, match="did not finish: ngt_seed1, ngt_seed2"):
        sweep()
    assert len(trained_names) == 6
    assert "out of memory" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out/runs/waveresnet_seed2/metrics.json").read_text())["val_loss"] == 3.2
    trained_names.clear()
    with pytest.raises(UserError, match="did not finish"):
        sweep()
    assert trained_names == ["ngt_seed1", "ngt_seed2"]
    trained_names.clear()
    sweep("--bases=transformer", "--seeds=1,7", "--dry_run")
    assert trained_names == []
    assert "2 runs, 1 of them finished" in capsys.readouterr().out


def test_a_failure_after_training_keeps_the_loss(trained_names, sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "require_extra", lambda *names: None)
    flags = ("--bases=transformer", "--seeds=1")
    sweep(*flags)
    with pytest.raises(UserError, match="did not finish: transformer_seed1"):
        sweep(*flags, "--with_lm_eval")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1 of 1 finished, 1 failed" in text
    assert "| transformer | 1 | 3.1000 |" in text
    assert "| transformer_seed1 | no network |" in text
    metrics = json.loads((tmp_path / "out/runs/transformer_seed1/metrics.json").read_text())
    assert (metrics["status"], metrics["error"], metrics["val_loss"]) == ("error", "no network", 3.1)


@pytest.mark.parametrize("override", [False, True])
def test_a_folder_with_other_settings_is_not_changed(trained_names, sweep, tmp_path, override):
    sweep("--bases=transformer")
    before = (tmp_path / "out" / "results.csv").read_text()
    trained_names.clear()
    if not override:
        sweep.config.common.train.lr = 1.0
    with pytest.raises(UserError, match="holds a run with other settings"):
        sweep("--bases=transformer", *["--config.train.lr=1.0"] * override)
    assert trained_names == []
    assert (tmp_path / "out" / "results.csv").read_text() == before


def test_runs_on_other_text_are_not_put_beside_the_finished_ones(trained_names, sweep, tmp_path):
    text = write_text(tmp_path / "text.txt")
    sweep.config.common.data.update(sources=(str(text),), cache_dir=str(tmp_path / "cache"))
    flags = ("--bases=transformer,waveresnet", "--seeds=1")
    sweep(*flags)
    before = (tmp_path / "out" / "report.md").read_text()
    write_text(text, seed=1)
    with pytest.raises(
        UserError, match=r"transformer_seed1: was trained on another content of .*text\.txt; restore it"
    ):
        sweep("--bases=transformer,waveresnet", "--seeds=1,2")
    assert len(trained_names) == 2
    assert (tmp_path / "out" / "report.md").read_text() == before
    sweep(*flags)  # nothing is to be trained, so the finished runs are reported
    write_text(text)
    sweep("--bases=transformer,waveresnet", "--seeds=1,2")
    assert len(trained_names) == 4


@pytest.mark.parametrize("name", ["summary.json", "config.json", "code.json"])
def test_a_damaged_results_file_is_named_and_kept(trained_names, sweep, tmp_path, name):
    sweep("--bases=transformer", "--seeds=1")
    path = tmp_path / "out/runs/transformer_seed1" / name
    path.write_text("{")
    trained_names.clear()
    with pytest.raises(UserError, match=f"{name}: is not valid JSON"):
        sweep("--bases=transformer", "--seeds=1")
    assert (trained_names, path.read_text()) == ([], "{")


def test_standard_tasks_need_lm_eval(trained_names, sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="--with_lm_eval: needs lm_eval; pip install"):
        sweep("--with_lm_eval")
    assert trained_names == []


def test_ray_must_be_installed_and_leaves_no_choice_to_jobs(trained_names, sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^--engine=ray: needs ray; pip install 'psann_jax\[ray\]'$"):
        sweep("--engine=ray")
    with pytest.raises(UserError, match=r"^--jobs: has no effect with --engine=ray; set --cpus_per_run"):
        sweep("--engine=ray", "--jobs=2")
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setattr("psann_jax.utils.extras.is_installed", lambda name: True)
    sweep.config = small_sweep(budgets=("tokens", "seconds"))
    with pytest.raises(UserError, match=r"^--engine: must be local, because the sweep's budget seconds"):
        sweep("--engine=ray")
    assert trained_names == []


def test_speeds_are_measured_before_runs_share_the_machine(trained_names, sweep, monkeypatch, tmp_path):
    measured = []

    def measure(self, config):
        measured.append(config.model.base)
        assert trained_names == []
        return 1000.0

    monkeypatch.setattr(runner.Speeds, "__call__", measure)
    monkeypatch.setattr(local, "find_devices", lambda: ("cpu", 1))
    monkeypatch.setattr(stages, "prepare_text", lambda case, folder, place: None)
    sweep.config = small_sweep(budgets=("seconds",), seeds=(1,))
    with pytest.raises(UserError, match="did not finish: ngt"):
        sweep("--jobs=2")
    assert set(measured) == {"transformer", "waveresnet", "ngt"}
    assert sorted(trained_names) == ["ngt_seconds_seed1", "transformer_seconds_seed1", "waveresnet_seconds_seed1"]


def test_the_text_of_runs_that_start_at_once_is_prepared_first(trained_names, sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "find_devices", lambda: ("cpu", 1))
    prepared = []

    def prepare_text(case, folder, place):
        prepared.append((folder.name, place.shows_output, list(trained_names)))
        return "no such file"  # the runs say so

    monkeypatch.setattr(stages, "prepare_text", prepare_text)
    sweep("--jobs=2", "--bases=transformer,waveresnet")
    assert prepared == [("transformer_seed1", True, [])]
    assert len(trained_names) == 4
    prepared.clear()
    shutil.rmtree(tmp_path / "out/runs/transformer_seed1")
    sweep("--jobs=2", "--bases=transformer,waveresnet")
    assert prepared == [], "a single run prepares its text itself"


def test_the_report_says_which_runs_shared_a_machine(trained_names, sweep, tmp_path):
    sweep("--bases=transformer,waveresnet")
    report, path = tmp_path / "out/report.md", tmp_path / "out/runs/transformer_seed1/code.json"
    assert "at the same time" not in report.read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shares": True}))
    sweep("--bases=transformer,waveresnet")
    assert "1 of the 4 trained at the same time as others, on shared cores or a shared GPU" in report.read_text()
    assert "their tokens/s and seconds say nothing about the speed of a contender" in (report.read_text())
    rows = json.loads((tmp_path / "out/summary.json").read_text())["results"]
    assert [row["shares"] for row in rows] == [True, False, False, False]


def test_a_missing_plotly_is_announced(trained_names, sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    sweep("--bases=ngt", "--dry_run")
    missing = "no interactive figures in report.html"
    assert f"{missing} and no coords_*.html pages: they need plotly; pip install" in capsys.readouterr().out
    sweep("--bases=transformer", "--dry_run")
    assert f"{missing}: they need plotly" in capsys.readouterr().out
    monkeypatch.undo()
    sweep("--bases=transformer", "--dry_run")
    assert "they need plotly" not in capsys.readouterr().out


def test_the_reference_of_a_report_can_be_chosen(trained_names, sweep, tmp_path):
    sweep("--bases=transformer,waveresnet")
    assert "| waveresnet | transformer |" in (tmp_path / "out" / "report.md").read_text()
    trained_names.clear()
    sweep("--bases=transformer,waveresnet", "--reference=waveresnet")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| transformer | waveresnet |" in report
    assert "| waveresnet | transformer |" not in report
    differences = report.split("## Contenders")[1].split("##")[0]
    assert "| waveresnet | none |" in differences
    assert "| transformer | model.base=transformer" in differences
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["contender"]: row["differences"] for row in csv.DictReader(file)}
    assert rows["waveresnet"] == ""
    assert rows["transformer"].startswith("model.base=transformer ")
    assert trained_names == []
    with pytest.raises(UserError, match=r"^--reference: 'waverestnet' is not compared, did you mean waveresnet\?$"):
        sweep("--bases=transformer,waveresnet", "--reference=waverestnet")
    with pytest.raises(UserError, match=r"^--reference: 'waveresnet' is not compared"):
        sweep("--bases=transformer", "--reference=waveresnet")


def test_noresume_refuses_a_used_workdir(trained_names, sweep):
    sweep("--bases=transformer", "--seeds=1", "--noresume")
    with pytest.raises(UserError, match=r"--workdir: .*out holds runs of this sweep"):
        sweep("--bases=transformer", "--noresume")
    assert trained_names == ["transformer_seed1"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=1,x", "--seeds: 'x' is not a seed"),
        ("--lm_eval_limit=8", "--lm_eval_limit: has no effect without --with_lm_eval"),
        ("--config.train.stepz=3", "--config.train.stepz: unknown key, did you mean train.steps?"),
        ("--jobs=0", "--jobs: is '0', must be a whole number of at least 1"),
        ("--address=a:1", "--address: has no effect without --engine=ray"),
        ("--address=ray://a:1", "--address: is 'ray://a:1', must be HOST:PORT"),
        ("--gpus_per_run=0.5", "--gpus_per_run: has no effect without --engine=ray"),
        ("--gpus_per_run=1.5", "--gpus_per_run: is '1.5', must be a part of 1 or a whole number, as in 0.5 or 2"),
        ("--engine=slurm", "--engine: invalid choice: 'slurm'"),
        ("--dryrun", "--dryrun: unknown argument, did you mean --dry_run?"),
    ],
)
def test_errors_are_one_line_before_anything_runs(flag, message, tmp_path):
    config = f"--config={TESTS.parent}/configs/sweeps/w3_25m.py"
    arguments = [config, f"--workdir={tmp_path / 'out'}", flag]
    done = subprocess.run(
        [sys.executable, "-m", "psann_jax", "sweep", *arguments], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "out").exists()


SWEEP = """
from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config

def get_config():
    common = default_config("ngt")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, d_coord=4, d_head_coord=2)
    common.data.update(max_length=16, sources=("TEXT",), valid_sources=("TEXT",), cache_dir="CACHE")
    common.data.tokenizer.kind = "bytes"
    common.train.update(batch_tokens=64, steps=400, warmup_steps=1, precision="fp32")
    common.eval.max_tokens = 256
    contenders = {"ngt": {"model.base": "ngt"}, "vanilla": {"model.base": "vanilla"}}
    return sweep_config(common, contenders, seeds=(42,))
"""


@pytest.mark.slow
def test_a_sweep_end_to_end(tmp_path):
    text = str(write_text(tmp_path / "text.txt"))
    path = tmp_path / "gravity.py"
    path.write_text(SWEEP.replace("TEXT", text).replace("CACHE", str(tmp_path / "cache")))
    flags = [f"--config={path}", f"--workdir={tmp_path / 'out'}", "--config.train.steps=4"]
    arguments = [sys.executable, "-m", "psann_jax", "sweep", *flags]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), cwd=TESTS.parent, timeout=600)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files == {
        "summary.json", "results.csv", "report.md", "report.html", "config_used.json", "loss_curves.png",
        "loss_by_flops.png", "coords_ngt_seed42.html",
    }  # fmt: skip
    assert "2 of 2 finished, 0 failed" in (tmp_path / "out" / "report.md").read_text()
    results = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert [(row["contender"], row["train_steps"]) for row in results] == [("ngt", 4), ("vanilla", 4)]
    again = subprocess.run(arguments, capture_output=True, text=True, env=environment(), cwd=TESTS.parent, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 2 of them finished" in again.stdout
    assert "===" not in again.stdout
