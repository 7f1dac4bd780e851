"""The time that a run spends in training steps."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class StepTimer:
    """Time spent in training steps, without compilation, evaluation and checkpoints.

    Attributes:
      seconds: total time of the steps.
      data_seconds: the part of it spent waiting for batches.
      steps: number of steps.
      last: time of the last step; infinite before its end is known.
    """

    seconds: float = 0.0
    data_seconds: float = 0.0
    steps: int = 0
    last: float = math.inf
    _since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Begins the next step now."""
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Ends a step, begins the next one, and returns the seconds of the first."""
        now = time.perf_counter()
        self.last, self._since = now - self._since, now
        self.seconds += self.last
        self.steps += 1
        return self.last

    @property
    def data_wait(self) -> float:
        """The fraction of the time spent waiting for batches."""
        return self.data_seconds / self.seconds if self.steps else 0.0
