"""Announced durations, and streams that cannot be written."""

import io
import sys

import pytest

from psann_jax.train.progress import Progress


@pytest.mark.parametrize(
    ("seconds", "measured", "shown"),
    [
        (0.5, True, ""),
        (140.4, True, "about 140 s per update, 211 minutes in all for 90 updates\n"),
        (3.0, False, "about 3 s per update, 4 minutes in all for 90 updates, estimated from the evaluation\n"),
    ],
)
def test_the_duration_of_slow_updates_is_shown(seconds, measured, shown):
    stream = io.StringIO()
    with Progress(100, start=10, stream=stream) as progress:
        progress.duration(seconds, measured=measured)
    assert stream.getvalue() == shown


def test_an_interval_is_shown_behind_its_value():
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        progress.evaluation(4, {"loss": 1.5, "solved": 0.75, "solved_low": 0.701, "solved_high": 0.8})
    assert "loss 1.5  solved 0.75 (0.701 to 0.8)" in stream.getvalue()
    assert "_low" not in stream.getvalue()


class Closed(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal

    def write(self, text):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_does_not_stop_the_run(terminal):
    with Progress(3, log_every=1, stream=Closed(terminal)) as progress:
        progress.header({"model": "tiny"})
        for step in range(1, 4):
            progress.update(step, {"loss": 1.0})
        progress.message("stopped")


def test_without_a_stream_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(1, log_every=1) as progress:
        progress.update(1, {"loss": 1.0})
