"""The time that a run spends in training steps."""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field

_RECENT = 10  # steps


@dataclass
class StepTimer:
    """Time spent in training steps, without compilation, evaluation and checkpoints.

    Attributes:
      seconds: total time of the steps.
      data_seconds: the part of it spent waiting for batches.
      steps: number of steps.
      last: time of the last step; infinite before its end is known.
      recent: mean time of the last steps, of at most ten since `start`. That of a single step is not its own if the
        device has begun or ended it while the host prepared another.
    """

    seconds: float = 0.0
    data_seconds: float = 0.0
    steps: int = 0
    last: float = math.inf
    recent: float = math.inf
    _laps: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Begins the next step now."""
        self._laps.clear()
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Ends a step, begins the next one, and returns the seconds of the first."""
        now = time.perf_counter()
        self.last, self._since = now - self._since, now
        self.seconds += self.last
        self.steps += 1
        self._laps.append(self.last)
        self.recent = statistics.fmean(self._laps)
        return self.last

    @property
    def data_wait(self) -> float:
        """The fraction of the time spent waiting for batches."""
        return self.data_seconds / self.seconds if self.steps else 0.0
