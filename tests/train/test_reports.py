"""What a run reports to loggers and callbacks, and how these can end it."""

import contextlib
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from psann_jax.config import ConfigError
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.samples import write_samples
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loggers, loop
from psann_jax.train.callbacks import Callback, Callbacks
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.metrics import MetricsWriter, read_metrics
from psann_jax.train.reports import Reports
from tests.support.tiny import tiny_config

TIMINGS = {"tokens_per_s", "data_wait"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with the text, a config, its task, and the compiled steps that all runs of the module share."""
    tmp_path = tmp_path_factory.mktemp("reports")
    config = tiny_config(tmp_path, eval__every=4)
    task = LanguageModel.load(config, progress=False)
    return tmp_path, config, task, loop.compile_steps(task, config, loop.make_mesh(config.mesh))


@pytest.fixture
def run(base, monkeypatch):
    """Trains in a workdir with callbacks; returns the summary, and raises the exception of a callback."""
    _, config, task, compiled = base
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)

    def train(workdir, *callbacks, config=config, task=task):
        hooks = Callbacks(callbacks)
        summary = loop.train(config, lambda: task, workdir, callbacks=hooks)
        hooks.raise_error()
        return summary

    return train


def rows_of(workdir):
    rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(workdir / "metrics.jsonl")]
    return sorted(rows, key=lambda row: (row["step"], row["kind"]))


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, config, step):
        self.calls.append(("begin", step))

    def on_step_end(self, step, metrics):
        self.calls.append(("step", step, metrics["loss"]))

    def on_evaluate_end(self, step, results):
        self.calls.append(("evaluate", step, results["loss"]))

    def on_checkpoint(self, step, path):
        self.calls.append(("checkpoint", step, path.name))

    def on_train_end(self, summary):
        self.calls.append(("end", summary["steps"]))


class At(Callback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, step, metrics):
        if step == self.step:
            self.action(self)


def stop(callback):
    callback.stop_training = True


def fail(callback):
    raise ZeroDivisionError("of the callback")


def test_callbacks_see_every_step_evaluation_and_checkpoint_in_order(run, base, tmp_path):
    recorder = Recorder()
    run(tmp_path / "run", recorder)
    losses = {(row["kind"], row["step"]): row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert recorder.calls[0] == ("begin", 0)
    assert recorder.calls[-1] == ("end", 8)
    steps = [call for call in recorder.calls if call[0] == "step"]
    assert steps == [("step", n, losses["train", n]) for n in range(1, 9)]
    evaluations = [call for call in recorder.calls if call[0] == "evaluate"]
    assert evaluations == [("evaluate", n, losses["eval", n]) for n in (0, 4, 8)]
    # 4 is saved as the best so far; 8 twice, to record its loss, but it is one checkpoint.
    assert [call[1:] for call in recorder.calls if call[0] == "checkpoint"] == [(n, f"step_{n}") for n in (3, 4, 6, 8)]
    order = [call[:2] for call in recorder.calls]
    assert order.index(("step", 4)) < order.index(("evaluate", 4)) < order.index(("step", 5))


def test_all_steps_are_reported_with_rare_rows(run, base, tmp_path):
    recorder = Recorder()
    run(tmp_path / "run", recorder, config=tiny_config(base[0], train__log_every=5, eval__every=4))
    assert [call[1] for call in recorder.calls if call[0] == "step"] == [*range(1, 9)]
    trained = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert trained == [1, 5, 8]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_callback_stops_the_run_and_the_resumed_one_equals_an_uninterrupted_one(run, tmp_path, step, capsys):
    run(tmp_path / "whole")
    assert run(tmp_path / "run", At(step, stop))["stopped"]
    assert "stopped by callback At at step" in capsys.readouterr().err
    saved = CheckpointReader(tmp_path / "run" / "checkpoints").latest()
    assert saved in (step, step + 1)  # the next update may have been dispatched
    again = At(step, stop)
    again.stop_training = True  # as a callback that has stopped an earlier run
    recorder = Recorder()
    assert "stopped" not in run(tmp_path / "run", again, recorder)
    assert recorder.calls[0] == ("begin", saved)
    np.testing.assert_equal(rows_of(tmp_path / "run"), rows_of(tmp_path / "whole"))


def test_a_stop_after_the_last_evaluation_leaves_a_complete_run(run, tmp_path):
    class AfterEvaluation(Callback):
        def on_evaluate_end(self, step, results):
            self.stop_training = step == 8

    assert "stopped" not in run(tmp_path / "run", AfterEvaluation())
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("step", [2, 8])
def test_an_exception_in_a_callback_is_raised_with_the_state_saved(run, tmp_path, step):
    run(tmp_path / "whole")
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match="of the callback") as caught:
        run(tmp_path / "run", At(step, fail), recorder)
    assert caught.value.__notes__ == ["raised by At.on_step_end; the state of the run is saved"]
    assert caught.traceback[-1].name == "fail"
    assert [call[1] for call in recorder.calls if call[0] == "step"] == [*range(1, step)]
    assert CheckpointReader(tmp_path / "run" / "checkpoints").latest() in (step, step + 1)
    run(tmp_path / "run")
    np.testing.assert_equal(rows_of(tmp_path / "run"), rows_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("on_train_begin", marks=pytest.mark.slow),
        "on_evaluate_end",
        pytest.param("on_checkpoint", marks=pytest.mark.slow),
        "on_train_end",
    ],
)
def test_an_exception_in_any_method_leaves_a_run_that_resumes(run, tmp_path, method):
    def method_that_fails(self, *_):
        raise KeyError(method)

    failing = type("Failing", (Callback,), {method: method_that_fails})()
    with pytest.raises(KeyError, match=method):
        run(tmp_path / "run", failing)
    assert CheckpointReader(tmp_path / "run" / "checkpoints").latest() is not None
    assert run(tmp_path / "run")["steps"] == 8


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Callback(), "callbacks: is of type Callback, must be a list of callbacks"),
        ([print], r"callbacks\[0\]: is builtin_function_or_method, must be derived from Callback"),
        ([Callback(), Recorder], r"callbacks\[1\]: is Recorder, is a class; use Recorder\(\)"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(ConfigError, match=message):
        Callbacks(callbacks)


# --- loggers ----------------------------------------------------------------------------------------------


class FakeLogger:
    """Writes the rows of metrics.jsonl that it receives to a file."""

    def __init__(self, run):
        self.file = (run.workdir / f"{run.id}.jsonl").open("a")

    def log(self, step, values):
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def finish(self, end):
        self.file.write(json.dumps({"end": end}) + "\n")
        self.file.close()


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(loggers, "check_loggers", lambda config: None)
    monkeypatch.setattr(loop, "check_loggers", lambda config: None)
    monkeypatch.setattr(loggers, "SERVICES", {"wandb": FakeLogger, "mlflow": lambda run: fail(None)})


def test_loggers_receive_the_rows_of_the_metrics_and_a_failing_one_ends_nothing(run, base, tmp_path, fake, capsys):
    config = tiny_config(base[0], eval__every=4, train__loggers=("mlflow", "wandb"))
    assert run(tmp_path / "run", At(5, stop), config=config)["stopped"]
    run(tmp_path / "run", config=config)
    run(tmp_path / "plain")
    warning = "warning: train.loggers: mlflow has failed and is off: ZeroDivisionError: of the callback\n"
    assert capsys.readouterr().err.count(warning) == 2  # once in each start
    np.testing.assert_equal(rows_of(tmp_path / "run"), rows_of(tmp_path / "plain"))
    (path,) = [path for path in (tmp_path / "run").glob("*.jsonl") if path.name != "metrics.jsonl"]
    received = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["end"] for row in received if "end" in row] == ["stopped", "complete"]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    expected = [
        {"step": r["step"], **{f"{r['kind']}/{n}": v for n, v in r.items() if n not in ("step", "kind")}} for r in rows
    ]
    assert [row for row in received if "end" not in row] == expected


def test_a_run_may_get_other_loggers(run, base, tmp_path, fake):
    run(tmp_path / "run", At(2, stop))
    run(tmp_path / "run", config=tiny_config(base[0], eval__every=4, train__loggers=("wandb",)))
    assert (tmp_path / "run" / loggers.LOGGERS).exists()


# --- sample texts -----------------------------------------------------------------------------------------


def samples_of(workdir):
    return [(row["step"], row["texts"]) for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "samples"]


@pytest.fixture(scope="module")
def prompted(base):
    """The config of the module with prompts, and its task."""
    config = tiny_config(base[0], eval__every=4, eval__prompts=("the ", ""))
    return config, LanguageModel(config, base[2].data)


def test_sample_texts_at_every_evaluation_are_those_of_the_checkpoint(run, prompted, tmp_path):
    config, task = prompted
    summary = run(tmp_path / "run", config=config, task=task)
    found = samples_of(tmp_path / "run")
    assert [step for step, _ in found] == [0, 4, 8]
    pairs = [(text["prompt"], text["temperature"]) for text in found[0][1]]
    assert pairs == [("the ", 0.0), ("the ", 0.8), ("", 0.0), ("", 0.8)]
    assert found[1][1] != found[2][1]
    write_samples(tmp_path / "samples.json", load_text_run(tmp_path / "run"))
    written = json.loads((tmp_path / "samples.json").read_text())
    assert (written["step"], written["prompts"], written["samples"]) == (8, ["the ", ""], found[2][1])
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert events.count(b"samples/1 temperature 0.8") == 3
    run(tmp_path / "plain")
    without = [row for row in rows_of(tmp_path / "run") if row["kind"] != "samples"]
    np.testing.assert_equal(without, rows_of(tmp_path / "plain"))
    assert summary["steps"] == 8


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_resumed_run_has_the_same_sample_texts(run, prompted, tmp_path, step, monkeypatch):
    config, task = prompted
    run(tmp_path / "whole", config=config, task=task)
    original = MetricsWriter.write

    def killed(self, kind, now, values):
        if (kind, now) == ("eval", step):
            raise KeyboardInterrupt  # between the sample texts and the row of their evaluation
        original(self, kind, now, values)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(MetricsWriter, "write", killed)
        assert run(tmp_path / "run", At(step, stop), config=config, task=task)["stopped"]
    run(tmp_path / "run", config=config, task=task)
    assert samples_of(tmp_path / "run") == samples_of(tmp_path / "whole")


def test_a_diverged_model_is_sampled_with_a_warning_only(run, prompted, tmp_path, monkeypatch, capsys):
    config, task = prompted
    original = task.sample_texts
    broken = lambda params, mesh: original(jax.tree.map(lambda p: p * float("nan"), params), mesh)  # noqa: E731
    monkeypatch.setattr(task, "sample_texts", broken)
    assert run(tmp_path / "run", config=config, task=task)["steps"] == 8
    assert capsys.readouterr().err.count("warning: eval.prompts: ") == 3
    assert samples_of(tmp_path / "run") == []


# --- batches without targets ----------------------------------------------------------------------------


def test_a_batch_without_targets_is_said_once(tmp_path):
    said = []
    progress = SimpleNamespace(update=lambda *_: None, message=said.append)
    metrics = dict.fromkeys(("ppl", "ppl_avg25", "lr", "tokens_per_s", "bad_steps"), 0.0)
    writer = MetricsWriter(tmp_path)
    with Reports(progress, Callbacks(), lambda: None, writer, loggers.Loggers(print), tmp_path) as reports:
        for step, loss in enumerate((1.0, math.nan, math.nan), 1):
            reports.step(step, metrics | {"loss": loss}, is_row=True)
        reports.step(4, metrics | {"loss": math.nan, "bad_steps": 1.0}, is_row=False)
    assert len(said) == 1
    assert said[0].startswith("warning: the batch of update 2 has no targets, so it has no loss")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_array_equal([row["loss"] for row in rows], [1.0, math.nan, math.nan])
