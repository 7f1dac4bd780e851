"""A trace of some steps, on request."""

from pathlib import Path
from typing import Any

import jax

from psann_jax.config import require
from psann_jax.utils.errors import UserError


class StepTrace:
    """Records what host and devices do in the steps first..last of a run, for TensorBoard's profile plugin or Perfetto.

    Attributes:
      directory: where the trace is written.
    """

    def __init__(self, steps: str, directory: Path) -> None:
        """Args:
        steps: "first:last", counted from 1, both included; "" for no trace.
        directory: made when the trace begins.

        Raises:
          UserError: `steps` is of another form.
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

    def before(self, step: int) -> None:
        """Begins the trace if `step`, about to be taken, is the first of it."""
        if step == self._first:
            jax.profiler.start_trace(self.directory)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if `step`, which gives `results`, is the last of it; waits for the results then."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
