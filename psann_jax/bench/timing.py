"""Times training steps one by one."""

import itertools
import time
from collections.abc import Callable


def time_steps(step: Callable[[], Callable[[], object]], n_steps: int, *, ahead: bool) -> list[float]:
    """Runs steps and times each, from the end of the previous step to its own end.

    Args:
      step: runs or starts a step; returns a function that waits for its end.
      n_steps: number of steps.
      ahead: start the next step before waiting for the current one, as the training loop does, so that a device
        always has work. Use it only where `step` returns before the step ends; otherwise a time would cover two steps
        or none.

    Returns:
      Seconds of each step.
    """
    ends = [time.perf_counter()]
    pending: list[Callable[[], object]] = []
    for _ in range(n_steps):
        pending.append(step())
        while len(pending) > ahead:
            pending.pop(0)()
            ends.append(time.perf_counter())
    for wait in pending:
        wait()
        ends.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(ends)]
