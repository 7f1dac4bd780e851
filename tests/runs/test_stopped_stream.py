"""A run that is stopped while it waits for text."""

import os
import signal
import threading

import pytest

from psann_jax.data import stream_sources, stream_windows
from psann_jax.runs.training import train_run
from psann_jax.train.metrics import read_metrics
from tests.support.tiny import tiny_config, write_parts

pytestmark = pytest.mark.usefixtures("default_signals")


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"}


@pytest.mark.slow
def test_a_signal_does_not_wait_for_the_next_batch(tmp_path, monkeypatch):
    texts = write_parts(tmp_path / "texts")
    sources = {"sources": (f"{texts}/part-*.jsonl",), "valid_sources": (f"{texts}/valid.jsonl",)}
    changes = {f"data__{name}": value for name, value in sources.items()}
    config = tiny_config(
        tmp_path, data__stream=True, data__shuffle_buffer=4, data__valid_fraction=0.01, checkpoint__every=100, **changes
    )
    monkeypatch.setattr(stream_windows, "_BATCH_CHARACTERS", 200)
    train_run(config, tmp_path / "whole")
    read_piece, workdir, n_read, saved = stream_sources.read_piece, tmp_path / "run", 0, threading.Event()

    def stalling(piece):
        nonlocal n_read
        for document in read_piece(piece):
            n_read += 1
            if n_read == 60:
                os.kill(os.getpid(), signal.SIGTERM)
                while not saved.wait(0.1) and not list(workdir.glob("checkpoints/step_*")):
                    pass
            yield document

    monkeypatch.setattr(stream_sources, "read_piece", stalling)
    threading.Timer(60, saved.set).start()
    summary = train_run(config, workdir)
    assert summary["stopped"]
    assert not saved.is_set()
    assert 0 < summary["steps"] < 8
    monkeypatch.setattr(stream_sources, "read_piece", read_piece)
    train_run(config, workdir)
    assert losses(workdir) == losses(tmp_path / "whole")
