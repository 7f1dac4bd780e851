"""Metrics of a run: one JSON object per line in ``metrics.jsonl``, and the same values for TensorBoard."""

import contextlib
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

# Not SummaryWriter: it writes in a thread, and blocks forever once that thread has met a full disk.
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors

METRICS = "metrics.jsonl"
SAMPLES = "samples"  # the kind of rows with sample texts
TENSORBOARD = "tensorboard"
_FLUSH_SECONDS = 10  # between flushes of the events, which wait for the disk
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and scalars to the TensorBoard events in ``tensorboard/``.

    A row is ``{"step": 120, "kind": "train", "loss": 3.2, ...}``, where step is the number of updates done. JSON has
    no NaN or infinity, so they are stored as "NaN", "Infinity" and "-Infinity"; `read_metrics` converts them back.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        """Opens the files and deletes rows of steps after `resume_step`, which the resumed run computes again.

        Args:
          workdir: the run's directory; must exist.
          resume_step: the step from which training resumes.
          enabled: False in all processes but one; then nothing is read or written.

        Raises:
          UserError: the workdir cannot be written, or a line of metrics.jsonl is not JSON.
        """
        self._path = Path(workdir) / METRICS
        self._rows: TextIO | None = None
        self._events: EventsWriter | None = None
        self._flushed = time.monotonic()
        if not enabled:
            return
        with storage_errors(self._path):
            _drop_after(self._path, resume_step)
            self._rows = self._path.open("a", encoding="utf-8")
            events = Path(workdir) / TENSORBOARD
            events.mkdir(exist_ok=True)
            # The suffix makes the name unique: by default it has the time in seconds only, and opening truncates.
            self._events = EventsWriter(str(events / "events"), f".{time.time_ns()}")
            # Makes TensorBoard drop later steps in earlier files.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=resume_step + 1, wall_time=time.time(), session_log=start))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          kind: "train" or "eval"; TensorBoard shows the values as ``kind/name``.
          step: number of updates done.
          values: name -> number, or array of one element.

        Raises:
          UserError: the row cannot be written, for example because the disk is full.
        """
        if self._rows is None or self._events is None:
            return
        numbers = {name: np.asarray(value).item() for name, value in values.items()}
        line = _line({"step": int(step), "kind": kind, **numbers})
        scalars = [Summary.Value(tag=f"{kind}/{n}", simple_value=v) for n, v in numbers.items() if math.isfinite(v)]
        with storage_errors(self._path):
            self._rows.write(line)
            self._rows.flush()
            self._events.write_event(Event(step=int(step), wall_time=time.time(), summary=Summary(value=scalars)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def write_texts(self, step: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Writes the sample texts of an evaluation as one row of kind "samples"; call it before `write` for the rest.

        Args:
          step: number of updates done.
          texts: see `psann_jax.sample.prompts.sample_texts`.

        Raises:
          UserError: the row cannot be written.
        """
        if self._rows is None or self._events is None:
            return
        with storage_errors(self._path):
            self._rows.write(_line({"step": int(step), "kind": SAMPLES, "texts": list(texts)}))
            for index, row in enumerate(texts):
                # TensorBoard shows Markdown; an indented block is shown as it is.
                shown = "".join(f"    {line}\n" for line in f"{row['prompt']}{row['text']}".splitlines())
                summary = text(f"{SAMPLES}/{index} temperature {row['temperature']}", shown)
                self._events.write_event(Event(step=int(step), wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Flushes and closes both files."""
        with contextlib.suppress(OSError):  # `write` has already raised it
            if self._rows is not None:
                self._rows.close()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``; none if there is no such file.

    An incomplete last line, as a killed run leaves it, is skipped. Metrics of version 0.1 get their current names.

    Raises:
      UserError: another line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    with storage_errors(path, "read"):
        *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
            rows.append({current_name(name): _from_json(value) for name, value in row.items()})
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            shown = line[:60].decode(errors="backslashreplace")
            raise UserError(f"{path}: line {number} is not a JSON object of numbers with a step: {shown!r}") from error
    return rows


def mean_speed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns tokens_per_s and data_wait over the training rows of `read_metrics`; 0 if there are none."""
    updates = [row for row in rows if row["kind"] == "train"]
    if not updates:
        return {"tokens_per_s": 0.0, "data_wait": 0.0}
    rate = statistics.harmonic_mean([row["tokens_per_s"] for row in updates])
    return {"tokens_per_s": rate, "data_wait": statistics.fmean(row["data_wait"] for row in updates)}


def _drop_after(path: Path, step: int) -> None:
    """Removes the rows after `step` from the file, atomically."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    evaluated = {row["step"] for row in rows if row["kind"] == "eval"}
    rows = [row for row in rows if row["kind"] != SAMPLES or row["step"] in evaluated]  # else it is evaluated again
    atomic_write(path, "".join(_line(row) for row in rows), fsync=True)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps({name: _to_json(value) for name, value in row.items()}, allow_nan=False) + "\n"


def _to_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def current_name(metric: str) -> str:
    """Returns the current name of a metric, which version 0.1 may have called differently."""
    return metric.replace("averaged_", "ema_").replace("top1", "accuracy")


def perplexity(loss: float) -> float:
    """Returns ``exp(loss)`` of a mean cross entropy in nats; inf above the range of float64, NaN for NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
