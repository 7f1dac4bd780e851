"""metrics.jsonl, TensorBoard events, and progress on the terminal."""

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from psann_jax.train.metrics import MetricsWriter, perplexity, read_metrics
from psann_jax.train.progress import Progress
from psann_jax.utils.errors import UserError


def tensorboard_scalars(workdir):
    """(tag, step, value) of all events, read from the record format: length, checksum, data, checksum."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return found


def test_rows_are_flushed_immediately(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("eval", 0, {"loss": 9.5})
        writer.write("train", 10, {"loss": jnp.float32(3.25), "lr": np.float32(0.5), "bad_steps": 2})
        rows = read_metrics(tmp_path / "metrics.jsonl")  # while the writer is open
    assert rows == [
        {"step": 0, "kind": "eval", "loss": 9.5},
        {"step": 10, "kind": "train", "loss": 3.25, "lr": 0.5, "bad_steps": 2},
    ]
    assert isinstance(rows[1]["bad_steps"], int)
    assert tensorboard_scalars(tmp_path) == [
        ("eval/loss", 0, 9.5),
        ("train/loss", 10, 3.25),
        ("train/lr", 10, 0.5),
        ("train/bad_steps", 10, 2.0),
    ]


def test_non_finite_values_are_valid_json(tmp_path, capfd):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "lr": 0.1})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    raw = json.loads(line, parse_constant=refuse)
    assert [raw["loss"], raw["grad_norm"], raw["low"]] == ["NaN", "Infinity", "-Infinity"]
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["loss"])
    assert [row["grad_norm"], row["low"], row["kind"]] == [math.inf, -math.inf, "train"]
    assert tensorboard_scalars(tmp_path) == [("train/lr", 1, pytest.approx(0.1))]
    assert capfd.readouterr() == ("", "")


def test_resuming_drops_rows_of_unsaved_steps(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(6):
            writer.write("train", step, {"loss": float(step) if step != 2 else math.nan})
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write("train", 4, {"loss": 40.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
    assert math.isnan(rows[2]["loss"])
    assert rows[4]["loss"] == 40
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_truncated_by_a_kill_is_skipped_and_then_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "loss": 1.0}\n{"step": 2, "ki')
    assert [r["step"] for r in read_metrics(path)] == [1]
    with MetricsWriter(tmp_path, resume_step=5) as writer:
        writer.write("train", 6, {"loss": 2.0})
    assert [r["step"] for r in read_metrics(path)] == [1, 6]


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"step": [1]}'])
def test_any_other_broken_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "kind": "train"}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 ") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_disabled_writer_leaves_nothing(tmp_path):
    with MetricsWriter(tmp_path, enabled=False) as writer:
        writer.write("train", 1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/metrics\.jsonl: cannot be written: Not a directory"):
        MetricsWriter(tmp_path / "file")


def test_a_full_disk_is_reported_and_earlier_rows_are_kept(tmp_path):
    """A limit on file sizes of 4096 bytes stands for a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with MetricsWriter(tmp_path) as writer:
            for step in range(1000):
                try:
                    writer.write("train", step, {"loss": 1.0})
                except UserError as error:
                    message = str(error)
                    break
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message == f"{tmp_path / 'metrics.jsonl'}: cannot be written: File too large"
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(step))
    assert step > 50


def test_two_writers_within_a_second_keep_both_event_files(tmp_path):
    for step in (1, 2):
        with MetricsWriter(tmp_path, resume_step=step - 1) as writer:
            writer.write("train", step, {"loss": float(step)})
    assert tensorboard_scalars(tmp_path) == [("train/loss", 1, 1.0), ("train/loss", 2, 2.0)]


def test_perplexity():
    assert perplexity(math.log(16384)) == pytest.approx(16384)
    assert perplexity(1e6) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


# --- progress -------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, **kwargs):
    with Progress(20, log_every=5, stream=stream, **kwargs) as progress:
        progress.header({"parameters": "1,234", "device": "1 x CPU"})
        for step in range(kwargs.get("start", 0) + 1, 21):
            progress.update(step, {"loss": 2.5, "ppl": 12.18249, "tokens_per_s": 1234567.0, "lr": 2e-4})
            if step == 10:
                progress.evaluation(step, {"loss": 2.75, "ppl": 15.64263, "accuracy": 0.4257})


def test_plain_lines_without_a_terminal():
    stream = io.StringIO()
    show(stream)
    text = stream.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[:2] == ["parameters  1,234", "device      1 x CPU"]
    values = "loss 2.5  ppl 12.2  1,234,567 tokens/s  lr 2.00e-04  ETA 00:"
    expected = [f"step {s}/20  {values}" for s in (5, 10, 15, 20)]
    expected.insert(2, "eval at step 10  loss 2.75  ppl 15.6  accuracy 0.4257")
    assert [line[: len(e)] for line, e in zip(lines[2:], expected, strict=True)] == expected


def test_bar_on_a_terminal_counts_from_the_resumed_step():
    stream = Terminal()
    show(stream, start=12)
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert "20/20" in last
    assert "loss 2.5  ppl 12.2" in last
    assert "tokens/s" in last
    assert "step 15/20" not in stream.getvalue()
    assert " 12/20" in stream.getvalue()  # where the bar begins


def test_an_evaluation_has_its_own_line_above_the_bar():
    stream = Terminal()
    show(stream)
    assert "\reval at step 10  loss 2.75  ppl 15.6  accuracy 0.4257\n" in stream.getvalue()


def test_the_last_step_is_shown_even_between_log_steps():
    stream = io.StringIO()
    with Progress(7, log_every=5, stream=stream) as progress:
        for step in range(1, 8):
            progress.update(step, {"loss": 1.0})
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["step 5/7", "step 7/7"]


def test_other_processes_show_nothing():
    stream = io.StringIO()
    show(stream, enabled=False)
    assert stream.getvalue() == ""
