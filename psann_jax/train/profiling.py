"""Profiler traces of selected training steps."""

from pathlib import Path
from typing import Any

import jax

from psann_jax.config import require
from psann_jax.utils.errors import UserError


class StepTrace:
    """Traces host and devices during some steps of a run, for TensorBoard's profile plugin or Perfetto.

    Attributes:
      directory: where the trace is written.
    """

    def __init__(self, steps: str, directory: Path) -> None:
        """Parses the steps to trace.

        Args:
          steps: "FIRST:LAST", counted from 1, both included; "" for no trace.
          directory: created when the trace begins.

        Raises:
          UserError: `steps` has another form.
        """
        self.directory = directory
        self._first = self._last = 0
        self._running = False
        if not steps:
            return
        first, colon, last = steps.partition(":")
        if not (colon and first.isdigit() and last.isdigit()):
            raise UserError(f"--profile_steps: is {steps!r}, must be FIRST:LAST, such as 10:12")
        self._first, self._last = int(first), int(last)
        require(1 <= self._first <= self._last, "--profile_steps", f"is {steps}, must be 1 <= FIRST <= LAST")

    def check_steps(self, done: int, steps: int) -> None:
        """Checks that a run of `steps` steps takes some of those to trace; says so if `done` steps include them all.

        Such a run resumes, perhaps by the command that has traced them.

        Raises:
          UserError: the run ends before them.
        """
        require(
            self._first <= steps,
            "--profile_steps",
            f"is {self._first}:{self._last}, but the run ends at step {steps}",
        )
        if 0 < self._last <= done and jax.process_index() == 0:
            print(
                f"--profile_steps: nothing is traced, the run has already done the steps {self._first} to {self._last}",
                flush=True,
            )

    def before(self, step: int) -> None:
        """Starts the trace if `step`, about to begin, is the first of those to trace, or the run resumes among them."""
        if not self._running and self._first <= step <= self._last:
            # Processes on one host would write to the same file.
            own = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
            jax.profiler.start_trace(self.directory / own)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if `step` is the last one to trace, after waiting for its results."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace if it is still running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
