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


def test_a_run_that_resumes_among_the_steps_traces_the_rest(tmp_path):
    trace = StepTrace("2:5", tmp_path / "profile")
    trace.check_steps(3, 9)
    for step in (4, 5, 6):
        trace.before(step)
        trace.after(step, jnp.ones(3))
    assert len(traces(trace.directory)) == 1


def test_a_run_resumes_after_the_steps_with_a_line(tmp_path, capsys):
    for steps in ("", "2:5"):
        StepTrace(steps, tmp_path).check_steps(4, 9)
    assert capsys.readouterr().out == ""
    StepTrace("2:5", tmp_path).check_steps(5, 9)
    assert capsys.readouterr().out == "--profile_steps: nothing is traced, the run has already done the steps 2 to 5\n"


@pytest.mark.parametrize("done", [0, 1])
def test_steps_after_the_end_of_the_run_are_refused(tmp_path, done):
    with pytest.raises(UserError, match=r"^--profile_steps: is 2:5, but the run ends at step 1$"):
        StepTrace("2:5", tmp_path).check_steps(done, 1)
    StepTrace("", tmp_path).check_steps(done, 1)


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
