"""bench accelerator: stages in order, kept results, and what happens to one that fails or has no time."""

import json
import sys
from pathlib import Path

import pytest

from psann_jax.bench import accelerator
from psann_jax.bench.accelerator import Stage, run_stages
from psann_jax.bench.accelerator_stages import stages
from psann_jax.cli.commands import COMMANDS
from psann_jax.config.files import load_experiment


def stage(name, **options):
    return Stage(name, ("bench", "x", f"--config={name}.py"), lambda result: f"shown {result['value']}", **options)


@pytest.fixture
def calls(monkeypatch):
    """Replaces the commands by ones that write their result, or fail as told by the name of the stage."""
    made = []

    def call(command, shown, seconds, *, save):
        made.append((command[3:], seconds, save))
        name = command[5].partition("=")[2]
        if "fails" in name:
            shown.write("some lines\nerror: model.d_model: is 0, must be at least 1\n")
            return 2
        if "endless" in name:
            return None
        if save:
            workdir = Path(command[-1].partition("=")[2])
            workdir.mkdir(parents=True)
            (workdir / "summary.json").write_text('{"value": 7}')
            return 0
        Path(command[-1].removeprefix("--json=")).write_text('{"value": 5}')
        return 1 if "fault" in name else 0

    monkeypatch.setattr(accelerator, "_call", call)
    return made


def test_results_are_kept_and_a_second_start_goes_on(calls, tmp_path):
    plan = [stage("a"), stage("b/fails"), stage("c")]
    first = run_stages(plan, tmp_path, 10)["stages"]
    assert [first[s.name]["status"] for s in plan] == ["done", "failed", "done"]
    assert first["a"]["shown"] == "shown 5"
    assert first["b/fails"]["error"] == '"error: model.d_model: is 0, must be at least 1"'
    assert (tmp_path / "report.md").read_text().splitlines()[2].startswith("| a | shown 5 | ")
    assert json.loads((tmp_path / "results.json").read_text())["stages"] == first
    calls.clear()
    run_stages([*plan, stage("d")], tmp_path, 10)
    assert [command[2] for command, _, _ in calls] == ["--config=b/fails.py", "--config=d.py"]


def test_a_changed_command_runs_again(calls, tmp_path):
    run_stages([stage("a")], tmp_path, 10)
    changed = Stage("a", ("bench", "x", "--config=other.py"), lambda result: "other")
    assert run_stages([changed], tmp_path, 10)["stages"]["a"]["shown"] == "other"
    assert len(calls) == 2


def test_a_check_that_finds_a_fault_is_done(calls, tmp_path):
    assert run_stages([stage("fault")], tmp_path, 10)["stages"]["fault"]["status"] == "done"


def test_without_time_a_stage_waits_or_is_stopped(calls, tmp_path):
    results = run_stages([stage("endless"), stage("long", minutes=20)], tmp_path, 10)["stages"]
    assert results["endless"]["status"] == "stopped"
    assert results["long"] == {"status": "waiting", "shown": "not started: no time was left"}
    assert len(calls) == 1
    assert calls[0][1] == pytest.approx(600, abs=5)


def test_a_training_run_has_its_workdir_and_its_summary(calls, tmp_path):
    plan = [
        Stage("t", ("train", "x", "--config=c.py", "--workdir={out}/runs/t"), lambda r: str(r["value"]), is_run=True)
    ]
    assert run_stages(plan, tmp_path, 10)["stages"]["t"]["shown"] == "7"
    [(command, _, save)] = calls
    assert command[-1] == f"--workdir={tmp_path}/runs/t"
    assert save


def test_a_command_is_ended_when_its_time_is_over(tmp_path):
    with (tmp_path / "log").open("w") as shown:
        forever = [sys.executable, "-c", "import time; time.sleep(600)"]
        assert accelerator._call(forever, shown, 1, save=False) is None
        assert accelerator._call([sys.executable, "-c", "raise SystemExit(3)"], shown, 60, save=False) == 3


@pytest.mark.parametrize("tiny", [False, True])
def test_every_stage_is_a_command_with_a_valid_config(tiny):
    commands = {name for group in COMMANDS.values() for name in group}
    plan = stages(tiny=tiny)
    assert len({s.name for s in plan}) == len(plan)
    for each in plan:
        size = 2 if each.command[0] == "bench" else 1
        assert " ".join(each.command[:size]) in commands
        for flag in ("config", "against"):
            [file] = [part.partition("=")[2] for part in each.command if part.startswith(f"--{flag}=")] or [None]
            if file:
                prefix = f"--{flag}."
                load_experiment(file, [p.removeprefix(prefix) for p in each.command if p.startswith(prefix)], flag)
