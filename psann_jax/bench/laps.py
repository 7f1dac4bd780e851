"""The time of training steps, one by one."""

import itertools
import time
from collections.abc import Callable


def lap_times(step: Callable[[], Callable[[], object]], n_steps: int, *, ahead: bool) -> list[float]:
    """Takes steps and times each from the end of the one before to its own end.

    Args:
      step: takes a step, or starts one; returns a function that waits for its end.
      n_steps: how many.
      ahead: start the next step before waiting for one, as the training loop does, so that a device always has
        work. Only where `step` returns before the step ends, or laps would hold two steps or none.

    Returns:
      Seconds of each step.
    """
    times = [time.perf_counter()]
    pending: list[Callable[[], object]] = []
    for _ in range(n_steps):
        pending.append(step())
        while len(pending) > ahead:
            pending.pop(0)()
            times.append(time.perf_counter())
    for wait in pending:
        wait()
        times.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(times)]
