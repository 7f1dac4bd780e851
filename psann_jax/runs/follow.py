"""Evaluates the checkpoints of a run beside its training: reads what the training writes, and changes none of it."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from psann_jax.runs.restore import TextRun
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.workdir import CHECKPOINTS, CONFIG, read_config, read_summary
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.files import storage_errors

EVALUATIONS = "evaluations.jsonl"
_POLL_S = 5.0  # between looks at the workdir

Row = dict[str, Any]


class Follower:
    """The evaluations of a run that are in `EVALUATIONS`, and those that are added.

    A row of the file has the step, the settings of the evaluation, the hash of the text and the results.
    """

    def __init__(self, workdir: Path, settings: Row, say: Callable[[str], None]) -> None:
        """Opens the workdir.

        Args:
          workdir: of the run, which need not have a checkpoint yet.
          settings: what the results depend on besides the checkpoint; only rows with the same ones count as done.
          say: shows a line about a checkpoint that is skipped, or about waiting.

        Raises:
          UserError: there is no such directory, or the file cannot be read.
        """
        if not workdir.is_dir():
            raise UserError(f"{workdir}: there is no such directory; give the workdir of a run")
        self._workdir, self._settings, self._say = workdir, settings, say
        self._path = workdir / EVALUATIONS
        self._rows = [row for row in _read(self._path) if row.get("settings") == settings]
        self._skipped: set[int] = set()
        self._has_loaded = False  # what the first checkpoint lacks, such as EMA weights, all may lack

    def run(
        self,
        load: Callable[[int], TextRun],
        evaluate: Callable[[TextRun], Row],
        timeout_s: float = math.inf,
    ) -> Iterator[Row]:
        """Evaluates every checkpoint that has not been evaluated, the oldest first, until the run is complete.

        Args:
          load: loads the checkpoint of a step.
          evaluate: returns the results on a text, with the hash of the text as "text".
          timeout_s: ends after so many seconds without a new checkpoint.

        Returns:
          The new rows, each as soon as it is in the file.

        Raises:
          UserError: what `evaluate` raises, or `load` for the first checkpoint; earlier rows are of another text; or
            the file cannot be written.
        """
        last_time, said = time.monotonic(), False
        while True:
            complete = self._run_is_complete()  # before the checkpoints are listed, so that the last one is seen
            step = self._next_step()
            if step is None:
                if complete or time.monotonic() - last_time >= timeout_s:
                    return
                if not said:
                    self._say(f"{self._workdir}: waiting for the next checkpoint")
                    said = True
                time.sleep(min(_POLL_S, timeout_s))
                continue
            run = self._load(step, load)
            if run is not None:
                yield self._add({"step": step, "settings": self._settings, **evaluate(run)})
            last_time = time.monotonic()

    def _run_is_complete(self) -> bool:
        if not (self._workdir / CONFIG).exists():
            return False
        steps = read_config(self._workdir).get("train", {}).get("steps")
        return steps is not None and read_summary(self._workdir).get("steps") == steps

    def _steps(self) -> list[int]:
        return CheckpointReader(self._workdir / CHECKPOINTS).steps()

    def _next_step(self) -> int | None:
        done = {row["step"] for row in self._rows} | self._skipped
        return min((step for step in self._steps() if step not in done), default=None)

    def _load(self, step: int, load: Callable[[int], TextRun]) -> TextRun | None:
        """Loads a checkpoint; None if the training has deleted it meanwhile, or if it is damaged."""
        try:
            run = load(step)
        except Exception as error:
            deleted = step not in self._steps()
            if not deleted and (not self._has_loaded or not isinstance(error, UserError)):
                raise
            self._skipped.add(step)
            self._say(f"step {step}: skipped; " + ("deleted by the training" if deleted else one_line(error)))
            return None
        self._has_loaded = True
        return run

    def _add(self, row: Row) -> Row:
        others = {known.get("text") for known in self._rows} - {row["text"]}
        if others:
            raise UserError(f"{self._path}: has evaluations of another text with these settings; move it away")
        self._rows.append(row)
        with storage_errors(self._path), self._path.open("ab") as file:
            # One write, so that rows of two commands do not mix; after a line that a kill has cut off, on a new line.
            prefix = b"" if _ends_in_newline(self._path) else b"\n"
            os.write(file.fileno(), prefix + json.dumps(row).encode() + b"\n")
        return row


def _read(path: Path) -> list[Row]:
    """The rows of the file; lines that a kill has cut off are skipped."""
    if not path.exists():
        return []
    with storage_errors(path, "read"):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _ends_in_newline(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")
