"""Runs on a stream: without a network, from a bucket, resumed, evaluated; tests/faults kills them."""

import pytest

from psann_jax.data import remote_files, stream_windows
from psann_jax.runs.evaluate import evaluate, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import train_run
from psann_jax.train import resuming
from psann_jax.train.checkpoint_reader import CheckpointReader
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.errors import DataError, UserError
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.experiment import recorded_step, saved_steps
from tests.support.tiny import tiny_config, write_parts
from tests.support.web import web_server


def stream_config(tmp_path, sources, **overrides):
    values = {
        "data__sources": sources,
        "data__valid_sources": (str(tmp_path / "texts" / "valid.jsonl"),),
        "data__valid_fraction": 0.01,
        "data__stream": True,
        "data__shuffle_buffer": 16,
        "checkpoint__every": 100,
        "train__steps": 12,
    }
    return tiny_config(tmp_path, **values | overrides)


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"}


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS_S", (0, 0))
    monkeypatch.setattr(stream_windows, "_BATCH_CHARACTERS", 500)


def test_a_network_that_fails_ends_the_run_with_its_work_saved(tmp_path, no_waiting):
    write_parts(tmp_path / "texts")
    with web_server(tmp_path / "texts") as web:
        config = stream_config(tmp_path, tuple(f"{web.url}/part-{i}.jsonl" for i in range(4)))
        train_run(config, tmp_path / "whole")
        web.failures = [None] * 5 + [503] * 3  # four when the sources are opened, and the first part
        with pytest.raises(DataError, match=r"^http://.*part-\d.jsonl: cannot be read: HTTP Error 503.*3 attempts"):
            train_run(config, tmp_path / "run")
        assert 0 < recorded_step(tmp_path / "run") < 12
        assert saved_steps(tmp_path / "run") == [recorded_step(tmp_path / "run")]
        web.failures = [None] * 5 + [503, 10, 503]  # which are overcome
        assert train_run(config, tmp_path / "run")["steps"] == 12
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_text_and_run_in_a_bucket_equal_those_on_a_disk(tmp_path):
    texts = write_parts(tmp_path / "texts")
    with s3_bucket() as url:
        bucket_at(url).upload(texts, [path.name for path in texts.iterdir()])
        config = stream_config(tmp_path, (f"{url}/part-*.jsonl",), data__valid_sources=(f"{url}/valid.jsonl",))
        train_run(config, tmp_path / "bucket")
        assert not list((tmp_path / "cache").glob("**/*.jsonl"))
    train_run(stream_config(tmp_path, (f"{texts}/part-*.jsonl",)), tmp_path / "disk")
    assert losses(tmp_path / "bucket") == losses(tmp_path / "disk")


@pytest.mark.slow
def test_a_run_keeps_its_tokenizer_when_the_cache_is_gone(tmp_path):
    texts = write_parts(tmp_path / "texts")
    changes = {"data__tokenizer__kind": "bpe", "data__tokenizer__vocab_size": 300}
    sources = (f"{texts}/part-*.jsonl",)
    train_run(stream_config(tmp_path, sources, **changes, train__steps=3), tmp_path / "run")
    changes["data__cache_dir"] = str(tmp_path / "new")
    assert train_run(stream_config(tmp_path, sources, **changes), tmp_path / "run")["steps"] == 12
    assert not list((tmp_path / "new").glob("tokenizer-*"))


def test_another_text_and_another_number_of_processes_are_refused(tmp_path, monkeypatch):
    texts = write_parts(tmp_path / "texts")
    config = stream_config(tmp_path, (f"{texts}/part-*.jsonl",))
    train_run(stream_config(tmp_path, (f"{texts}/part-*.jsonl",), train__steps=3), tmp_path / "run")
    metadata = CheckpointReader(tmp_path / "run" / "checkpoints").metadata(3)
    assert len(metadata["streams"]) == 1
    assert metadata["streams"][0]["n_readers"] == 1
    monkeypatch.setattr(resuming, "gather_from_all", lambda state: [state, state])
    train_run(stream_config(tmp_path, (f"{texts}/part-*.jsonl",), train__steps=3), tmp_path / "two")
    monkeypatch.undo()
    expected = r"^data.stream: the run was saved by 2 processes, and a stream continues with as many only;"
    with pytest.raises(UserError, match=expected):
        train_run(stream_config(tmp_path, (f"{texts}/part-*.jsonl",)), tmp_path / "two")
    with pytest.raises(UserError, match=r"holds another run: data.shuffle_buffer is 16 there and 17 here"):
        train_run(stream_config(tmp_path, (f"{texts}/part-*.jsonl",), data__shuffle_buffer=17), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"holds another run: data\.sources is .*part-\*.* there and .*part-0.* here; choose"
    ):
        train_run(stream_config(tmp_path, (f"{texts}/part-0.jsonl",)), tmp_path / "run")
    with (texts / "part-2.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(
        UserError, match=r"was trained on another content of .*/part-\*\.jsonl, .*/valid\.jsonl or with another"
    ):
        train_run(config, tmp_path / "run")


def test_a_streamed_run_is_evaluated_on_its_validation_text(tmp_path):
    texts = write_parts(tmp_path / "texts")
    config = stream_config(tmp_path, (f"{texts}/part-*.jsonl",))
    summary = train_run(config, tmp_path / "run")
    for path in texts.glob("part-*"):
        path.unlink()
    run = load_text_run(tmp_path / "run", "last")
    text = validation_text(run)
    assert evaluate(run, text).results["loss"] == pytest.approx(summary["val_loss"], rel=1e-5)
    (texts / "valid.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(UserError, match=r"^data.valid_sources: differ from the text that"):
        validation_text(run)
