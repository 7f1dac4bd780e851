"""Profiler traces of selected steps."""

import jax.numpy as jnp
import pytest

from psann_jax.train.profiling import StepTrace
from psann_jax.utils.errors import UserError


def traces(directory):
    return list(directory.rglob("*.xplane.pb"))


def test_the_given_steps_are_traced(tmp_path):
    trace = StepTrace("2:3", tmp_path / "profile")
    for step in (1, 2, 3):
        trace.before(step)
        assert not traces(trace.directory), "still running"
        trace.after(step, jnp.ones(3) + step)
    assert len(traces(trace.directory)) == 1
    trace.before(4)
    trace.after(4, None)
    trace.close()
    assert len(traces(trace.directory)) == 1


def test_a_run_that_ends_early_keeps_its_trace(tmp_path):
    trace = StepTrace("1:5", tmp_path / "profile")
    trace.before(1)
    trace.after(1, jnp.ones(3))
    trace.close()
    assert len(traces(trace.directory)) == 1


def test_nothing_is_written_without_steps(tmp_path):
    trace = StepTrace("", tmp_path / "profile")
    trace.before(1)
    trace.after(1, None)
    trace.close()
    assert not trace.directory.exists()


@pytest.mark.parametrize("steps", ["3", "a:b", "3:2", "0:2", "1:", ":", "1:2:3"])
def test_errors_name_the_flag(steps, tmp_path):
    with pytest.raises(UserError, match=r"^--profile_steps: is .*must be"):
        StepTrace(steps, tmp_path)
