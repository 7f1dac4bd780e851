"""bench accelerator: stages in order, kept results, and what happens to one that fails or has no time."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from psann_jax.bench import accelerator
from psann_jax.bench.accelerator import Stage, run_stages
from psann_jax.bench.accelerator_stages import stages
from psann_jax.cli.bench import accelerator as command
from psann_jax.cli.commands import COMMANDS
from psann_jax.cli.program import exit_code
from psann_jax.config.files import load_experiment


def stage(name, **options):
    return Stage(name, ("bench", "x", f"--config={name}.py"), lambda result: f"shown {result['value']}", **options)


def kept(out):
    return json.loads((out / "results.json").read_text())["stages"]


def training(name="t"):
    command = ("train", "x", f"--config={name}.py", f"--workdir={{out}}/runs/{name}")
    return Stage(name, command, lambda result: str(result["value"]), is_run=True)


@pytest.fixture
def calls(monkeypatch):
    """Replaces the commands by ones that write their result, or fail as told by the name of the stage."""
    made = []

    def call(command, shown, seconds, *, save, stopping):
        made.append((command[3:], seconds, save))
        name = command[5].partition("=")[2]
        if "fails" in name:
            shown.write("some lines\nerror: model.d_model: is 0, must be at least 1\n")
            return 2
        if "unforeseen" in name:
            shown.write("error: unexpected XlaRuntimeError: boom\n")
            return 1
        if "interrupted" in name:
            raise KeyboardInterrupt
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


def test_every_start_of_the_self_test_has_its_own_folder(calls, tmp_path):
    [selftest] = [each for each in stages() if each.name == "selftest"]
    [out] = [part for part in selftest.command if part.startswith("--out=")]
    run_stages([Stage("s", ("bench", "x", "--config=a", out), lambda result: "")], tmp_path, 10)
    assert re.fullmatch(rf"--out={tmp_path}/selftest/\d{{8}}_\d{{6}}", calls[0][0][3])


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
    assert run_stages([training()], tmp_path, 10)["stages"]["t"]["shown"] == "7"
    [(command, _, save)] = calls
    assert command[-1] == f"--workdir={tmp_path}/runs/t"
    assert save


@pytest.mark.parametrize("stale", [False, True])
def test_a_training_run_that_an_error_ends_has_failed_and_the_next_stage_runs(stale, calls, tmp_path):
    if stale:
        (tmp_path / "runs" / "unforeseen").mkdir(parents=True)
        (tmp_path / "runs" / "unforeseen" / "summary.json").write_text('{"value": 7}')
    results = run_stages([training("unforeseen"), stage("c")], tmp_path, 10)["stages"]
    assert results["unforeseen"]["shown"] == 'failed: "error: unexpected XlaRuntimeError: boom"'
    assert [result["status"] for result in results.values()] == ["failed", "done"]


def test_an_interrupted_start_keeps_the_rows_of_earlier_ones(calls, tmp_path):
    plan = [stage("a"), stage("b/fails"), stage("c")]
    first = run_stages(plan, tmp_path, 10)["stages"]
    with pytest.raises(KeyboardInterrupt):
        run_stages([*plan[:1], stage("interrupted"), *plan[1:], stage("d")], tmp_path, 10)
    found = kept(tmp_path)
    waiting = {"status": "waiting", "shown": "not started"}
    assert found == first | {"interrupted": waiting, "d": waiting}
    assert list(found) == ["a", "interrupted", "b/fails", "c", "d"]
    assert len((tmp_path / "report.md").read_text().splitlines()) == 2 + 5
    late = run_stages([*plan, stage("d")], tmp_path, 0)["stages"]
    assert late == first | {"d": {"status": "waiting", "shown": "not started: no time was left"}}


def test_a_command_is_ended_when_its_time_is_over(tmp_path):
    def call(code, seconds):
        with (tmp_path / "log").open("w") as shown:
            command = [sys.executable, "-c", code]
            return accelerator._call(command, shown, seconds, save=False, stopping=threading.Event())

    assert call("import time; time.sleep(600)", 1) is None
    assert call("raise SystemExit(3)", 60) == 3


SAVES = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def save(*_):
    (here / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(here / "started").touch()
time.sleep(100)
"""


def test_a_signal_ends_the_stage_with_the_state_saved(tmp_path, monkeypatch):
    call = accelerator._call
    command = [sys.executable, "-c", SAVES, str(tmp_path)]
    monkeypatch.setattr(accelerator, "_call", lambda _, *args, **options: call(command, *args, **options))

    def send():
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(SystemExit) as ended:
        run_stages([training(), stage("next")], tmp_path, 10)
    assert ended.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "report.md").read_text().splitlines()[2:] == [
        f"| t | stopped: the command was interrupted | {kept(tmp_path)['t']['seconds']:.0f} |",
        "| next | not started |  |",
    ]


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        ([], "reports/accelerator"),
        (["--tiny"], "reports/accelerator_tiny"),
        (["--tiny", "--out=~/x"], str(Path("~/x").expanduser())),
    ],
)
def test_tiny_results_have_a_directory_of_their_own(flags, out, monkeypatch):
    monkeypatch.setattr(accelerator, "run_stages", lambda plan, out, minutes: {"stages": {}, "out": out})
    shown = []
    monkeypatch.setattr(command, "show", lambda table, results, file: shown.append(results))
    command.main(flags)
    assert shown[0]["out"] == Path(out)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ("", "--out: is empty, must be a directory"),
        ("{file}", "{file}: cannot be written: File exists; choose another --out"),
        ("{file}/x", "{file}/x: cannot be written: Not a directory; choose another --out"),
    ],
)
def test_a_directory_that_cannot_be_written_is_one_line(out, error, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    assert exit_code(["bench", "accelerator", "--tiny", "--minutes=1", f"--out={out.format(file=file)}"]) == 2
    assert capsys.readouterr().err == f"error: {error.format(file=file)}\n"


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
