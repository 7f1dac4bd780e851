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

    def require_steps(self, first: int, last: int) -> None:
        """Raises UserError unless some of the steps `first` to `last`, which this start takes, are to be traced."""
        is_met = not self._last or (self._first <= last and first <= self._last)
        require(
            is_met,
            "--profile_steps",
            f"is {self._first}:{self._last}, but this start takes the steps {first} to {last}",
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
