"""Progress of runs that train at once, in one place: a bar for each on a terminal or in a notebook, otherwise lines."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from psann_jax.engines.place import LOG
from psann_jax.experiments.cases import Case
from psann_jax.train.metrics import METRICS
from psann_jax.utils.progress_stream import bar_class, progress_stream, updates_in_place

Report = Callable[[Mapping[Path, str]], None]
_LINES_EVERY_S = 30.0
_TAIL_BYTES = 8192  # more than the last row of kind "train" and the evaluations after it
_TERMINAL_BAR = "{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt}{postfix}"
_NOTEBOOK_BAR = _TERMINAL_BAR.replace("{bar:12}", "{bar}")  # as in `psann_jax.train.progress`


class RunTable:
    """A `psann_jax.engines.engine.Watch` that shows the step, the loss and the remaining time of each run.

    They are read from the metrics of the runs, wherever these train. A run is shown from its first output on.

    Attributes:
      failures: the errors so far, by folder.
    """

    def __init__(self, runs: Mapping[Path, Case], report: Report, stream: TextIO | None = None) -> None:
        """Stores the arguments; shows nothing yet.

        Args:
          runs: the runs to do, by folder.
          report: called after every run with the errors so far.
          stream: where to show progress; None is stderr, or stdout in a notebook.
        """
        self.failures: dict[Path, str] = {}
        self._report, self._n_ended = report, 0
        self._stream = stream or progress_stream()
        width = max(len(folder.name) for folder in runs)
        self._runs = {folder: _Run(folder, case.config.train.steps, width) for folder, case in runs.items()}
        self._bars: dict[Path, tqdm] = {}
        self._next_lines = time.monotonic() + _LINES_EVERY_S

    def __enter__(self) -> "RunTable":
        return self

    def __exit__(self, *_: object) -> None:
        while self._bars:
            self._bars.popitem()[1].close()

    def started(self, folder: Path) -> None:
        """See `Watch`; an engine may not know this, so `refresh` finds it out."""

    def refresh(self) -> None:
        """Shows what has changed."""
        for run in self._runs.values():
            run.read()
        active = [run for run in self._runs.values() if run.active]
        if updates_in_place(self._stream):
            for run in active:
                self._show_bar(run)
        elif time.monotonic() >= self._next_lines:
            self._next_lines = time.monotonic() + _LINES_EVERY_S
            for run in active:
                if run.changed:
                    self._print(f"{run.name}  step {run.step}/{run.steps}{run.describe()}")
                    run.changed = False

    def ended(self, folder: Path, error: str | None) -> None:
        """Says how a run has ended, and reports."""
        run = self._runs.pop(folder)
        if folder in self._bars:
            self._bars.pop(folder).close()
        self._n_ended += 1
        state = "ended"
        if error is not None:
            self.failures[folder] = error
            state = f"failed: {error}; see {folder / LOG}"
        self._print(f"{run.name}  {state} ({self._n_ended} of {self._n_ended + len(self._runs)} runs)")
        self._report(self.failures)

    def _show_bar(self, run: "_Run") -> None:
        if run.folder not in self._bars:
            assert self._stream is not None
            self._bars[run.folder] = bar_class()(
                total=run.steps,
                initial=run.step,
                desc=run.name,
                leave=False,
                bar_format=_TERMINAL_BAR if self._stream.isatty() else _NOTEBOOK_BAR,
                dynamic_ncols=True,
                file=self._stream,
            )
        bar = self._bars[run.folder]
        bar.set_postfix_str(run.describe().strip(), refresh=False)
        bar.n = run.step
        bar.refresh()

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed
            tqdm.write(text, file=self._stream)


class _Run:
    """The progress of one run, from the files in its folder."""

    def __init__(self, folder: Path, steps: int, width: int) -> None:
        self.folder, self.steps, self.name = folder, steps, f"{folder.name:<{width}}"
        self.step, self.active, self.changed = 0, False, False
        self._loss: float | str | None = None
        self._log = self._log_size()
        self._first: tuple[float, int] | None = None  # time and step of the first row of this start
        self._eta = "?"
        self._update()

    def read(self) -> None:
        """Looks for new output and new rows of metrics.jsonl."""
        if not self.active:
            self.active = self.changed = self._log_size() != self._log
        elif self._update():
            self.changed, now = True, time.monotonic()
            if self._first is None or self.step <= self._first[1]:
                self._first = now, self.step  # without the time of compilation
            else:
                seconds = (now - self._first[0]) / (self.step - self._first[1])
                self._eta = tqdm.format_interval(seconds * (self.steps - self.step))

    def describe(self) -> str:
        """Returns the loss and the remaining time."""
        if self._first is None:
            return "  starting"
        if self.step == self.steps:
            return f"  loss {self._loss:.4g}  after training"
        return f"  loss {self._loss:.4g}  ETA {self._eta}"

    def _log_size(self) -> int:
        path = self.folder / LOG
        return path.stat().st_size if path.exists() else 0

    def _update(self) -> bool:
        """Reads the last row of training; returns whether it is a new one."""
        row = _last_train_row(self.folder / METRICS)
        if row is None or row["step"] == self.step:
            return False
        self.step, self._loss = row["step"], float(row["loss"])
        return True


def _last_train_row(path: Path) -> dict[str, Any] | None:
    """Returns the last complete row of kind "train", from the end of a file that another process writes."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with contextlib.suppress(ValueError):  # the first line read is seldom whole
                row = json.loads(line)
                if isinstance(row, dict) and row.get("kind") == "train":
                    return row
    return None
