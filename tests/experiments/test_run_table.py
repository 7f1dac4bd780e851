"""The table of runs that train at once, from the files in their workdirs."""

import io
import json

import pytest

from psann_jax.experiments import run_table
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.run_table import RunTable
from tests.support.sweeps import small_sweep


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [1000.0]
    monkeypatch.setattr(run_table.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs of 40 updates."""
    return {tmp_path / case.contender: case for case in all_cases(small_sweep(seeds=(1,)))[:2]}


def write(folder, *steps, loss=3.0, then=()):
    """Writes the log and the metrics of a run that is at the last of these steps."""
    folder.mkdir(exist_ok=True)
    (folder / "log.txt").write_text("x" * (len(steps) + 1))
    rows = [{"step": step, "kind": "train", "loss": loss} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *then]) + '{"step": 99')


def shown(table, stream, clock, seconds):
    """Moves the clock and returns the new lines."""
    start = len(stream.getvalue())
    clock[0] += seconds
    table.refresh()
    return stream.getvalue()[start:].splitlines()


def test_lines_show_what_has_changed(runs, clock):
    one, two = runs
    stream, failures = io.StringIO(), []
    write(two, 4)  # of an earlier start
    with RunTable(runs, lambda errors: failures.append(dict(errors)), stream) as table:
        assert shown(table, stream, clock, 100) == []
        write(one)
        assert shown(table, stream, clock, 31) == ["transformer  step 0/40  starting"]
        write(one, 1, 10, then=[{"step": 10, "kind": "eval", "loss": 9.0}])
        assert shown(table, stream, clock, 5) == [], "only every 30 seconds"
        write(one, 1, 10, 20)
        write(two, 4, 8, loss="NaN")
        assert shown(table, stream, clock, 30) == [
            "transformer  step 20/40  loss 3  ETA 01:00",
            "waveresnet   step 4/40  starting",
        ]
        assert shown(table, stream, clock, 31) == ["waveresnet   step 8/40  loss nan  ETA ?"]
        write(one, 40)
        assert shown(table, stream, clock, 31) == ["transformer  step 40/40  loss 3  after training"]
        table.ended(one, None)
        table.ended(two, "out of memory")
        assert stream.getvalue().splitlines()[-2:] == [
            "transformer  ended (1 of 2 runs)",
            f"waveresnet   failed: out of memory; see {two / 'log.txt'} (2 of 2 runs)",
        ]
    assert failures == [{}, {two: "out of memory"}]
    assert table.failures == {two: "out of memory"}


def test_a_terminal_shows_a_bar_for_each_run(runs, clock):
    one, two = runs
    stream = Terminal()
    with RunTable(runs, lambda errors: None, stream) as table:
        write(one, 1)
        write(two, 1)
        table.refresh()
        write(one, 10)
        write(two, 20)
        start = len(stream.getvalue())
        table.refresh()
        text = stream.getvalue()[start:]
        assert "transformer  25% |" in text
        assert "waveresnet   50% |" in text
        assert "10/40, loss 3  ETA ?" in text
        table.ended(one, None)
        assert "transformer  ended (1 of 2 runs)\n" in stream.getvalue()
        start = len(stream.getvalue())
        table.refresh()
        assert "transformer" not in stream.getvalue()[start:]


def test_a_damaged_file_is_shown_as_no_progress(runs, clock):
    one, _ = runs
    stream = io.StringIO()
    table = RunTable(runs, lambda errors: None, stream)
    write(one)
    (one / "metrics.jsonl").write_bytes(b"\xff\n[1]\n{}\n")
    assert shown(table, stream, clock, 31) == ["transformer  step 0/40  starting"]


def test_only_the_end_of_long_metrics_is_read(runs, clock):
    one, _ = runs
    stream = io.StringIO()
    table = RunTable(runs, lambda errors: None, stream)
    write(one, *range(1, 30), then=[{"step": 1, "kind": "train", "loss": 0.0, "note": "x" * 300}] * 100)
    shown(table, stream, clock, 0)
    write(one, *range(1, 30), then=[{"step": 29, "kind": "train", "loss": 2.5, "note": "x" * 300}] * 100)
    assert shown(table, stream, clock, 31) == ["transformer  step 29/40  loss 2.5  ETA ?"]
