"""One run of a sweep, in processes of its own."""

import json

import pytest

from psann_jax.experiments import run as sweep_run
from psann_jax.experiments.run import LmEval, finished, outcome, run_case
from psann_jax.experiments.sweeps import Case
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config

TASKS = LmEval(("sums", "odd"), 8, None)


@pytest.fixture
def case(tmp_path):
    """A run of two updates."""
    config = tiny_config(tmp_path, model__n_layers=1, train__steps=2, train__warmup_steps=1)
    return Case("waveresnet", (), 1, "tokens", config)


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """What would be started; the results of lm_eval are written."""
    started = []

    def process(arguments):
        started.append(arguments[0])
        if arguments[0] == "psann_jax.main":
            (tmp_path / "run" / "summary.json").write_text('{"steps": 2}')
            (tmp_path / "run" / "config.json").write_text(json.dumps(sweep_run.to_dict(made[0].config)))
        if arguments[0] == "psann_jax.cli.sine":
            (tmp_path / "run" / "sine_parameters.png").touch()
        if arguments[0] == "psann_jax.cli.lm_eval":
            content = {"tasks": arguments[2].split("=")[1].split(","), "limit": int(arguments[3].split("=")[1])}
            (tmp_path / "run" / "lm_eval.json").write_text(json.dumps(content))

    made = []
    monkeypatch.setattr(sweep_run, "_process", process)
    return started, made


def test_only_what_is_missing_is_done(case, processes, tmp_path):
    started, made = processes
    made.append(case)
    assert not finished(case, tmp_path / "run", None)
    assert run_case(case, tmp_path / "run", None) is None
    assert started == ["psann_jax.main", "psann_jax.cli.sine"]
    assert finished(case, tmp_path / "run", None)
    (tmp_path / "run" / "sine_parameters.png").unlink()
    assert not finished(case, tmp_path / "run", None), "the picture is missing"
    started.clear()
    run_case(case, tmp_path / "run", None)
    assert started == ["psann_jax.cli.sine"]
    assert not finished(case, tmp_path / "run", TASKS)
    started.clear()
    assert run_case(case, tmp_path / "run", TASKS) is None
    assert started == ["psann_jax.cli.lm_eval"]
    assert finished(case, tmp_path / "run", TASKS)
    assert not finished(case, tmp_path / "run", LmEval(("sums", "odd"), 9, None)), "another limit"
    assert not finished(case, tmp_path / "run", LmEval(("sums",), 8, None)), "other tasks"


def test_the_code_that_has_trained_is_recorded(case, processes, tmp_path, monkeypatch):
    processes[1].append(case)
    run_case(case, tmp_path / "run", None)
    (tmp_path / "run" / "summary.json").write_text('{"steps": 1}')
    run_case(case, tmp_path / "run", None)
    (only,) = json.loads((tmp_path / "run" / "code.json").read_text())["trained_by"]
    assert len(only["code"]) == 12
    (tmp_path / "run" / "summary.json").write_text('{"steps": 1}')
    monkeypatch.setattr(sweep_run, "code_version", lambda: {**only, "code": "later"})
    run_case(case, tmp_path / "run", None)
    codes = json.loads((tmp_path / "run" / "code.json").read_text())["trained_by"]
    assert [code["code"] for code in codes] == [only["code"], "later"]


def test_a_folder_of_other_settings_is_named(case, processes, tmp_path):
    processes[1].append(case)
    run_case(case, tmp_path / "run", None)
    other = Case("waveresnet", (), 1, "tokens", tiny_config(tmp_path, train__lr=0.5))
    with pytest.raises(UserError, match="run: holds a run of other settings"):
        finished(other, tmp_path / "run", None)


@pytest.mark.slow
def test_a_run_is_trained_and_drawn(case, tmp_path, capfd):
    assert run_case(case, tmp_path / "run", None) is None
    found = outcome(case, tmp_path / "run", None)
    assert found.summary["steps"] == 2
    assert found.sine_picture.read_bytes().startswith(b"\x89PNG")
    assert found.metrics()["status"] == "ok"
    too_long = Case("waveresnet", (), 1, "tokens", tiny_config(tmp_path, data__sources=("/no/such/text",)))
    assert run_case(too_long, tmp_path / "other", None).startswith("data.sources: ")
    capfd.readouterr()
