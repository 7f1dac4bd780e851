"""Loggers: services beside the workdir that receive the metrics of a run, W&B, MLflow and Trackio.

Each runs in a thread of its own, so that a slow service delays no update, and one that fails ends no run. A resumed run
continues the run of the service; `LOGGERS` in the workdir keeps its id.
"""

import contextlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from psann_jax.config import Config
from psann_jax.config.io import flatten, to_dict
from psann_jax.utils.errors import one_line
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import read_json, write_json

LOGGERS = "loggers.json"
_PROJECT = "psann_jax"
_MAX_WAIT_S = 25.0  # at the end, for what has not been sent yet; JAX lets other processes wait for 30 s
# Modules that a logger needs; the first has the logger's name.
_MODULES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "trackio": ("trackio",)}

End = Literal["complete", "stopped", "failed"]
Texts = Sequence[Mapping[str, Any]]  # rows of prompt, temperature, text and more


class Logger(Protocol):
    """Receives the metrics of a run; any method may raise any exception. All are called in one thread."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the values of one row of metrics.jsonl, named train/loss, eval/loss and so on."""

    def log_texts(self, step: int, texts: Texts) -> None:
        """Receives the sample texts of an evaluation."""

    def finish(self, end: End) -> None:
        """Sends what has not been sent yet, and says how the run ended."""


@dataclass(frozen=True)
class RunOfLogger:
    """What a logger needs to start or continue its run.

    Attributes:
      id: of the run, the same when it resumes.
      config: the settings.
      workdir: of the run.
    """

    id: str
    config: Config
    workdir: Path

    @property
    def name(self) -> str:
        """The name to show."""
        return self.workdir.absolute().name


# --- the services -----------------------------------------------------------------------------------------


class _Wandb:
    """A run of Weights & Biases, offline in the workdir unless a key is found and the service answers."""

    def __init__(self, run: RunOfLogger) -> None:
        import wandb

        self._table = wandb.Table
        mode: Any = os.environ.get("WANDB_MODE")
        if not mode:
            online = False
            with contextlib.suppress(Exception):  # no network, or a wrong key
                online = wandb.login(prompt=False)
            mode = "online" if online else "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=run.id,
            name=run.name,
            dir=run.workdir,
            config=to_dict(run.config),
            resume="allow",
            allow_val_change=True,
            mode=mode,
            settings=wandb.Settings(console="off"),
        )
        # W&B's own step must never decrease, but a run resumes from its last checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def log_texts(self, step: int, texts: Texts) -> None:
        self._run.log({"samples": self._table(*_table(texts)), "step": step})

    def finish(self, end: End) -> None:
        self._run.finish(exit_code=int(end == "failed"))


class _MLflow:
    """A run of MLflow, in a database in the workdir unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, run: RunOfLogger) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self._metric = Metric
        folder = run.workdir.absolute() / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            folder.mkdir(exist_ok=True)
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self._experiment(None if uri else folder)
        found = self._client.search_runs([experiment], f"tags.{_PROJECT} = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            created = self._client.create_run(experiment, tags={_PROJECT: run.id}, run_name=run.name)
            self._id = created.info.run_id
            params = [Param(name, str(value)) for name, value in flatten(to_dict(run.config))]
            for start in range(0, len(params), 100):  # the most that MLflow takes at once
                self._client.log_batch(self._id, params=params[start : start + 100])
        self._client.log_dict(self._id, to_dict(run.config), "config.json")

    def _experiment(self, folder: Path | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        artifacts = None if folder is None else (folder / "artifacts").as_uri()
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(n, v, now, step) for n, v in values.items()])

    def log_texts(self, step: int, texts: Texts) -> None:
        self._client.log_dict(self._id, {"step": step, "samples": list(texts)}, f"samples/step_{step}.json")

    def finish(self, end: End) -> None:
        status = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, status[end])


class _Trackio:
    """A run of Trackio, on this machine unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set."""

    def __init__(self, run: RunOfLogger) -> None:
        import trackio

        self._table = trackio.Table
        self._run = trackio.init(
            project=_PROJECT,
            name=f"{run.name}-{run.id}",  # a run is resumed by its name
            config=to_dict(run.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_texts(self, step: int, texts: Texts) -> None:
        self._run.log({"samples": self._table(*_table(texts))}, step=step)

    def finish(self, end: End) -> None:
        self._run.finish()


def _table(texts: Texts) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a table of sample texts."""
    columns = list(texts[0])
    return columns, [[row[name] for name in columns] for row in texts]


SERVICES: dict[str, Callable[[RunOfLogger], Logger]] = {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}


# --- all loggers of a run ---------------------------------------------------------------------------------


def check_loggers(config: Config) -> None:
    """Raises UserError, with the pip command, if a package that train.loggers needs is missing."""
    for name in config.train.loggers:
        require_extra(f"train.loggers: {name}", *_MODULES[name], extra=name)


class Loggers:
    """The loggers of train.loggers; a context that ends them.

    A logger that fails is reported once and receives nothing after that.

    Attributes:
      end: how the run ended, for the services; an exception that leaves the context makes it "failed".
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Has no loggers before `start`; `warn` shows a line."""
        self.end: End = "complete"
        self._warn = warn
        self._threads: dict[str, _LoggerThread] = {}

    def start(self, config: Config, workdir: Path) -> None:
        """Starts or continues the run of each service.

        Raises:
          UserError: the file with the ids of the runs is damaged or cannot be written.
        """
        if not config.train.loggers:
            return
        path = workdir / LOGGERS
        known = read_json(path) if path.exists() else {}
        ids = {name: str(known.get(name) or uuid.uuid4().hex[:8]) for name in config.train.loggers}
        if ids.items() - known.items():
            write_json(path, {**known, **ids})
        for name, id in ids.items():
            self._threads[name] = _LoggerThread(SERVICES[name], RunOfLogger(id, config, workdir))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Sends a row of metrics.jsonl; see `psann_jax.train.metrics.MetricsWriter.write`."""
        named = {f"{kind}/{name}": float(value) for name, value in values.items()}
        self._send(lambda logger: logger.log(step, named))

    def log_texts(self, step: int, texts: Texts) -> None:
        """Sends the sample texts of an evaluation."""
        self._send(lambda logger: logger.log_texts(step, texts))

    def _send(self, call: Callable[[Logger], None]) -> None:
        for thread in self._threads.values():
            thread.calls.put(call)
        self._drop_failed()

    def _drop_failed(self) -> None:
        for name, thread in [*self._threads.items()]:
            if thread.error is not None:
                del self._threads[name]
                kind = type(thread.error).__name__
                self._warn(f"warning: train.loggers: {name} has failed and is off: {kind}: {one_line(thread.error)}")

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end: End = self.end if kind is None else "failed"
        self._send(lambda logger: logger.finish(end))
        for thread in self._threads.values():
            thread.calls.put(None)
        deadline = time.monotonic() + _MAX_WAIT_S
        for name, thread in self._threads.items():
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                self._warn(f"warning: train.loggers: {name} did not take the last values within {_MAX_WAIT_S:.0f} s")
        self._drop_failed()


class _LoggerThread(threading.Thread):
    """Starts a logger and makes the calls put into a queue, None for the last.

    Attributes:
      calls: the queue.
      error: why the logger has failed; it makes no calls after that.
    """

    def __init__(self, service: Callable[[RunOfLogger], Logger], run: RunOfLogger) -> None:
        super().__init__(daemon=True)  # one that hangs must not keep the process alive
        self.calls: queue.SimpleQueue[Callable[[Logger], None] | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._service, self._run_of_logger = service, run
        self.start()

    def run(self) -> None:
        """Runs in the thread."""
        try:
            logger = self._service(self._run_of_logger)
            while (call := self.calls.get()) is not None:
                call(logger)
        except BaseException as error:  # of other people's code; a thread that only ended would lose values silently
            self.error = error


def are_unfinished() -> bool:
    """Whether the thread of a logger still runs, as one does whose service did not answer in its time."""
    return any(isinstance(thread, _LoggerThread) for thread in threading.enumerate())
