"""Loggers: what they receive, and that none of them ends or delays a run."""

import contextlib
import json
import subprocess
import sys
import threading

import pytest

from psann_jax.train import loggers
from psann_jax.train.loggers import LOGGERS, Loggers, check_loggers
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import is_installed
from tests.support.tiny import tiny_config


class Fake:
    """Keeps what it receives; `calls` has all instances' calls."""

    def __init__(self, run):
        self.calls = [("start", run.id)]
        self.made.append(self)

    def log(self, step, values):
        self.calls.append(("log", step, values))

    def log_texts(self, step, texts):
        self.calls.append(("texts", step, texts))

    def finish(self, end):
        self.calls.append(("finish", end))


@pytest.fixture
def fake(monkeypatch):
    """A class of loggers that stands for all services; its `made` has the instances."""
    made = type("Made", (Fake,), {"made": []})
    monkeypatch.setattr(loggers, "SERVICES", dict.fromkeys(loggers.SERVICES, made))
    return made


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, train__loggers=("wandb", "mlflow"))


def send(config, workdir, kind="train", step=1, warn=print, **values):
    workdir.mkdir(exist_ok=True)
    with Loggers(warn) as found:
        found.start(config, workdir)
        found.log(kind, step, values)


def test_every_logger_receives_all_in_order(fake, config, tmp_path):
    with Loggers(print) as found:
        found.start(config, tmp_path)
        for step in range(100):
            found.log("train", step, {"loss": step / 2})
        found.log_texts(100, [{"prompt": "a", "text": "b"}])
        found.end = "stopped"
    assert len(fake.made) == 2
    for logger in fake.made:
        assert logger.calls[1:-2] == [("log", step, {"train/loss": step / 2}) for step in range(100)]
        assert logger.calls[-2:] == [("texts", 100, [{"prompt": "a", "text": "b"}]), ("finish", "stopped")]


def test_a_resumed_run_has_the_same_ids_and_a_further_logger_its_own(fake, config, tmp_path):
    send(config, tmp_path / "run", loss=1.0)
    kept = json.loads((tmp_path / "run" / LOGGERS).read_text())
    assert [logger.calls[0][1] for logger in fake.made] == list(kept.values())
    assert len({*kept.values()}) == 2
    more = tiny_config(tmp_path, train__loggers=("trackio", "mlflow"))
    send(more, tmp_path / "run", loss=1.0)
    assert fake.made[3].calls[0] == ("start", kept["mlflow"])
    assert json.loads((tmp_path / "run" / LOGGERS).read_text()) == {**kept, "trackio": fake.made[2].calls[0][1]}


def test_an_exception_in_the_run_reaches_the_service_as_failed(fake, config, tmp_path):
    with contextlib.suppress(KeyboardInterrupt), Loggers(print) as found:
        found.start(config, tmp_path)
        raise KeyboardInterrupt
    assert [logger.calls[-1] for logger in fake.made] == [("finish", "failed")] * 2


@pytest.mark.parametrize("method", ["__init__", "log", "finish"])
def test_a_logger_that_fails_is_reported_once_and_the_others_go_on(fake, config, tmp_path, monkeypatch, method):
    def fail(self, *_):
        raise SystemExit("the service is\naway")

    broken = type("Broken", (fake,), {method: fail})
    monkeypatch.setitem(loggers.SERVICES, "wandb", broken)
    warnings = []
    with Loggers(warnings.append) as found:
        found.start(config, tmp_path)
        for step in range(200):
            found.log("train", step, {"loss": 1.0})
    assert warnings == ["warning: train.loggers: wandb has failed and is off: SystemExit: the service is"]
    (working,) = (logger for logger in fake.made if type(logger) is fake)
    assert len(working.calls) == 202


def test_a_logger_that_hangs_does_not_keep_the_run(fake, config, tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setitem(loggers.SERVICES, "wandb", type("Slow", (fake,), {"log": lambda *_: released.wait(60)}))
    monkeypatch.setattr(loggers, "_MAX_WAIT_S", 0.2)
    warnings = []
    send(config, tmp_path / "run", warn=warnings.append, loss=1.0)
    released.set()
    assert warnings == ["warning: train.loggers: wandb did not take the last values within 0 s"]


HANGING = """
import atexit, pathlib, threading, time
from psann_jax.cli import program
from psann_jax.config import Config, TrainConfig
from psann_jax.train import loggers

class Hanging:
    def __init__(self, run):
        atexit.register(time.sleep, 600)
        threading.Event().wait()

def dispatch(argv):
    loggers.SERVICES["wandb"], loggers._MAX_WAIT_S = Hanging, 0.5
    with loggers.Loggers(print) as found:
        found.start(Config(train=TrainConfig(loggers=("wandb",))), pathlib.Path(argv[0]))
    raise program.UserError("the end")

program.dispatch, program.restart_tuned = dispatch, lambda: None
program.run_program([{workdir!r}])
"""


def test_a_program_ends_while_a_library_waits_for_its_service(tmp_path):
    """W&B waits in an exit handler for what it could not send."""
    code = HANGING.format(workdir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (2, "error: the end\n")
    assert done.stdout == "warning: train.loggers: wandb did not take the last values within 0 s\n"


def test_without_loggers_nothing_starts(fake, tmp_path):
    send(tiny_config(tmp_path), tmp_path / "run", loss=1.0)
    assert fake.made == []
    assert not (tmp_path / "run" / LOGGERS).exists()


def test_a_missing_package_is_named_with_the_pip_command(tmp_path, monkeypatch):
    for module in ("wandb", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"train.loggers: wandb: needs wandb; pip install 'psann_jax\[wandb\]'"):
        check_loggers(tiny_config(tmp_path, train__loggers=("wandb",)))
    with pytest.raises(
        UserError, match=r"train.loggers: mlflow: needs .*sqlalchemy.*pip install 'psann_jax\[mlflow\]'"
    ):
        check_loggers(tiny_config(tmp_path, train__loggers=("mlflow",)))


def test_a_damaged_file_of_ids_is_named(fake, config, tmp_path):
    (tmp_path / LOGGERS).write_text("[")
    with pytest.raises(UserError, match=LOGGERS), Loggers(print) as found:
        found.start(config, tmp_path)


# --- the services -----------------------------------------------------------------------------------------


def needs(*modules):
    missing = [name for name in modules if not is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


TEXTS = [{"prompt": "the", "temperature": 0.8, "text": " sun", "finish": "length"}]


def start_stop_and_resume(name, workdir, tmp_path):
    """Two starts of a run; the second repeats step 2."""
    config = tiny_config(tmp_path, train__loggers=(name,))
    workdir.mkdir()
    for steps in ((1, 2), (2, 3)):
        warnings = []
        with Loggers(warnings.append) as found:
            found.start(config, workdir)
            for step in steps:
                found.log("train", step, {"loss": 1 / step, "ppl": float("nan")})
            found.log_texts(steps[-1], TEXTS)
        assert warnings == []
    return json.loads((workdir / LOGGERS).read_text())[name]


@needs("mlflow", "sqlalchemy", "alembic")
def test_mlflow_keeps_one_run_in_the_workdir(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start_stop_and_resume("mlflow", tmp_path / "run", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("psann_jax").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.base"] == "waveresnet"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1 / 3)]
    written = {path.name for path in (tmp_path / "run" / "mlflow").rglob("*.json")}
    assert written == {"config.json", "step_2.json", "step_3.json"}


@needs("wandb")
def test_wandb_without_a_key_writes_one_run_into_the_workdir(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    id = start_stop_and_resume("wandb", tmp_path / "run", tmp_path)
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{id}.wandb"] * 2
    assert all(b"loss" in path.read_bytes() for path in files)


@needs("trackio")
def test_trackio_keeps_one_run(tmp_path, monkeypatch):
    import trackio.sqlite_storage as storage

    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    id = start_stop_and_resume("trackio", tmp_path / "run", tmp_path)
    assert storage.SQLiteStorage.get_runs("psann_jax") == [f"run-{id}"]
    rows = storage.SQLiteStorage.get_logs("psann_jax", f"run-{id}")
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (1, 1.0),
        (2, 0.5),
        (2, 0.5),
        (3, 1 / 3),
    ]
