"""The time that a run spends in training steps."""

import pytest

from psann_jax.train import step_timer
from psann_jax.train.step_timer import StepTimer


def test_the_mean_of_the_last_steps_evens_out_laps_that_are_not_those_of_one_step(monkeypatch):
    """As when a device computes a step while the host still prepares the one after it."""
    now = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    timer = StepTimer()
    timer.start()
    for lap in (1.0, 2.0, 0.0):
        now[0] += lap
        assert timer.lap() == lap
    assert (timer.recent, timer.seconds, timer.steps, timer.last) == (1.0, 3.0, 3, 0.0)
    now[0] += 100.0  # an evaluation
    timer.start()
    for lap in range(1, 13):
        now[0] += lap
        timer.lap()
    assert timer.recent == pytest.approx(sum(range(3, 13)) / 10)
    assert timer.seconds == 3 + sum(range(1, 13))
