"""One run of a sweep, in child processes."""

import dataclasses
import hashlib
import json
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from psann_jax.config.io import default_config, parse
from psann_jax.engines.place import Place
from psann_jax.experiments import run
from psann_jax.experiments.cases import Case
from psann_jax.experiments.run import LmEval, check_data, finished, read_outcome, run_case
from psann_jax.sample.prompts import sample_settings
from psann_jax.utils.errors import UserError
from tests.support.sweeps import make_outcome
from tests.support.tiny import tiny_config, write_text

PLACE = Place()
TASKS = LmEval(("sums", "odd"), 8)


@pytest.fixture
def case(tmp_path):
    """A run of two updates."""
    config = tiny_config(tmp_path, model__n_layers=1, train__steps=2, train__warmup_steps=1)
    return Case("waveresnet", (), 1, "tokens", config)


@pytest.fixture
def processes(monkeypatch, case):
    """Replaces child processes by the files that they leave, and returns their modules or commands."""
    started = []

    def run_module(place, arguments, log_folder):
        name = arguments[0] if arguments[0] == "psann_jax.main" else arguments[1]
        started.append(name)
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in arguments if flag.startswith("--"))
        folder = Path(flags["workdir"])
        if name == "psann_jax.main":
            (folder / "summary.json").write_text('{"steps": 2, "val_loss": 1.0}')
            config = Path(flags["config"]).with_name("config.json").read_text()
            (folder / "config.json").write_text(config)
        elif name == "sine":
            (folder / "sine_parameters.png").touch()
        elif name == "coordinates":
            Path(flags["out"]).touch()
        elif name == "samples":
            (folder / "samples.json").write_text(json.dumps({"step": 2, **sample_settings(()), "samples": []}))
        elif name == "lm_eval":
            content = {"tasks": flags["tasks"].split(","), "limit": int(flags["limit"])}
            Path(flags["json"]).write_text(json.dumps(content))

    monkeypatch.setattr(Place, "run_module", run_module)
    return started


@pytest.fixture
def folder(tmp_path):
    """The run's workdir within the sweep's."""
    return tmp_path / "runs" / "run"


def test_only_missing_files_are_made(case, processes, folder):
    assert not finished(case, folder, None)
    assert run_case(case, folder, PLACE, None) is None
    assert processes == ["psann_jax.main", "sine", "samples"]
    assert finished(case, folder, None)
    (folder / "sine_parameters.png").unlink()
    assert not finished(case, folder, None), "the figure is missing"
    processes.clear()
    run_case(case, folder, PLACE, None)
    assert processes == ["sine"]
    assert not finished(case, folder, TASKS)
    processes.clear()
    assert run_case(case, folder, PLACE, TASKS) is None
    assert processes == ["lm_eval"]
    assert finished(case, folder, TASKS)
    assert not finished(case, folder, LmEval(("sums", "odd"), 9)), "another limit"
    assert not finished(case, folder, LmEval(("sums",), 8)), "other tasks"


@pytest.mark.parametrize("changed", [{"step": 1}, {"seed": 1}, {"prompts": ["A"]}])
def test_sample_texts_of_other_settings_or_steps_are_replaced(case, processes, folder, changed):
    run_case(case, folder, PLACE, None)
    path = folder / "samples.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert not finished(case, folder, None)
    processes.clear()
    run_case(case, folder, PLACE, None)
    assert processes == ["samples"]
    assert finished(case, folder, None)


def test_neither_puzzles_nor_diverged_runs_have_sample_texts(processes, folder, case):
    config = default_config("sudoku")
    config.train.steps = 2
    assert run_case(Case("sudoku", (), 1, "tokens", parse(config)), folder, PLACE, None) is None
    assert processes == ["psann_jax.main"]
    other = folder.with_name("diverged")
    run_case(case, other, PLACE, None)
    (other / "samples.json").unlink()
    (other / "summary.json").write_text('{"steps": 2, "val_loss": NaN}')
    assert finished(case, other, None)


def test_a_gravity_model_gets_a_coordinates_page_in_the_workdir_of_the_sweep(processes, folder, monkeypatch, tmp_path):
    config = default_config("ngt")
    config.train.steps = 2
    case = Case("ngt", (), 1, "tokens", parse(config))
    assert run_case(case, folder, PLACE, None) is None
    assert processes == ["psann_jax.main", "coordinates", "samples"]
    assert (tmp_path / "coords_run.html").exists()
    assert finished(case, folder, None)
    (tmp_path / "coords_run.html").unlink()
    assert not finished(case, folder, None)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "plotly", None)
        assert finished(case, folder, None), "plotly is not installed"
    (folder / "summary.json").write_text('{"steps": 2, "val_loss": NaN}')
    assert finished(case, folder, TASKS), "a diverged run has no finite coordinates, and no answers for lm_eval"


def test_the_code_that_trained_a_run_is_recorded(case, processes, folder, monkeypatch):
    run_case(case, folder, PLACE, None)
    (folder / "summary.json").write_text('{"steps": 1}')
    run_case(case, folder, PLACE, None)
    (only,) = json.loads((folder / "code.json").read_text())["trained_by"]
    assert len(only["code"]) == 12
    (folder / "summary.json").write_text('{"steps": 1}')
    monkeypatch.setattr(run, "code_version", lambda: {**only, "code": "later"})
    run_case(case, folder, PLACE, None)
    codes = json.loads((folder / "code.json").read_text())["trained_by"]
    assert [code["code"] for code in codes] == [only["code"], "later"]


def test_code_that_is_edited_during_a_sweep_is_recorded(case, processes, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "__file__", str(tmp_path / "package/experiments/run.py"))
    module = tmp_path / "package/module.py"
    module.parent.mkdir()
    for text in ("a = 1\n", "a = 2\n", "a = 2\n"):
        module.write_text(text)
        run_case(case, folder, PLACE, None)
        (folder / "summary.json").unlink()
    codes = json.loads((folder / "code.json").read_text())["trained_by"]
    assert len(codes) == len({code["code"] for code in codes}) == 2


def test_a_folder_with_other_settings_is_named(case, processes, folder, tmp_path):
    run_case(case, folder, PLACE, None)
    other = Case("waveresnet", (), 1, "tokens", tiny_config(tmp_path, train__lr=0.5))
    with pytest.raises(UserError, match="run: holds a run with other settings"):
        finished(other, folder, None)


def test_a_run_older_than_a_setting_had_its_default(case, processes, folder, tmp_path):
    run_case(case, folder, PLACE, None)
    saved = json.loads((folder / "config.json").read_text())
    del saved["train"]["lr_scales"]
    (folder / "config.json").write_text(json.dumps(saved))
    assert finished(case, folder, None)
    other = dataclasses.replace(
        case, config=tiny_config(tmp_path, model__n_layers=1, train__steps=2, train__lr_scales__sine=2.0)
    )
    with pytest.raises(UserError, match="run: holds a run with other settings"):
        finished(other, folder, None)


def test_a_run_that_was_stopped_has_not_finished(case, processes, folder, monkeypatch):
    """Its process has exit code 0, as after the end."""
    monkeypatch.setattr(Place, "run_module", lambda place, arguments, log_folder: None)
    assert run_case(case, folder, PLACE, None) == "was stopped before its end"


def test_runs_that_share_a_machine_are_marked(case, processes, folder):
    run_case(case, folder, Place(shares=True), None)
    assert read_outcome(case, folder, None).shares
    (folder / "summary.json").write_text('{"steps": 1}')
    run_case(case, folder, PLACE, None)
    assert json.loads((folder / "code.json").read_text())["shares"], "a part of its time was not its own"
    other = folder.with_name("other")
    run_case(case, other, PLACE, None)
    assert not read_outcome(case, other, None).shares
    (other / "code.json").write_text('{"trained_by": []}')  # of an earlier version
    assert not read_outcome(case, other, None).shares


def test_a_run_on_data_that_have_changed_is_named(case, processes, folder, tmp_path):
    run_case(case, folder, PLACE, None)
    check_data({case: folder})
    (text,) = map(Path, case.config.data.sources)
    before = text.read_text()
    text.write_text(before + "another line\n")
    with pytest.raises(
        UserError, match=r"runs/run: was trained on another content of .*text\.txt; restore it, or choose"
    ):
        check_data({case: folder})
    text.write_text(before)
    check_data({case: folder})
    text.unlink()
    check_data({case: folder})  # training another run would say so
    text.write_text("another")
    for record in ('{"trained_by": []}', '{"trained_by": [], "data": null}'):  # the first is of an earlier version
        (folder / "code.json").write_text(record)
        check_data({case: folder})
    (folder / "code.json").unlink()
    check_data({case: folder})


def test_hashes_of_validation_files_are_those_of_the_start(processes, folder, tmp_path):
    valid = write_text(tmp_path / "valid.txt", seed=1)
    changes = {"model__n_layers": 1, "train__steps": 2, "train__warmup_steps": 1, "data__valid_fraction": 0.01}
    config = tiny_config(tmp_path, **changes, data__valid_sources=(str(valid), "builtin:python"))
    case = Case("waveresnet", (), 1, "tokens", config)
    run_case(case, folder, PLACE, None)
    expected = {str(valid): hashlib.sha256(valid.read_bytes()).hexdigest()}
    write_text(valid, seed=2)
    run_case(case, folder, PLACE, None)
    outcome = read_outcome(case, folder, None)
    assert outcome.valid_sha256 == expected
    outcome.summary.update(make_outcome(case, 3.0).summary)
    outcome.rows.extend(make_outcome(case, 3.0).rows)
    assert outcome.metrics()["valid_sha256"] == expected
    (folder / "code.json").write_text('{"trained_by": []}')  # of an earlier version
    assert read_outcome(case, folder, None).valid_sha256 is None


def test_a_run_waits_for_an_earlier_process_that_still_saves(case, processes, folder, monkeypatch):
    monkeypatch.setattr(run, "_WAIT_POLL_S", 0.01)
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    began = time.monotonic()
    assert run_case(case, folder, PLACE, None) is None
    assert time.monotonic() - began > 0.2
    with lock:
        (folder / "summary.json").unlink()
        run_case(case, folder, Place(stopping=lambda: True), None)
        (folder / "summary.json").unlink()
        monkeypatch.setattr(run, "_WAIT_S", 0.05)
        run_case(case, folder, PLACE, None)  # the process then says who holds the workdir


@pytest.mark.slow
def test_a_run_is_trained_and_drawn(case, folder, tmp_path, capfd):
    assert run_case(case, folder, PLACE, None) is None
    outcome = read_outcome(case, folder, None)
    assert outcome.summary["steps"] == 2
    assert outcome.sine_figure.read_bytes().startswith(b"\x89PNG")
    assert outcome.metrics()["status"] == "ok"
    assert len(outcome.samples["samples"]) == 8
    without_text = Case("waveresnet", (), 1, "tokens", tiny_config(tmp_path, data__sources=("/no/such/text",)))
    assert run_case(without_text, folder.with_name("other"), PLACE, None).startswith("data.sources: ")
    capfd.readouterr()
