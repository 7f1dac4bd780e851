"""`train_run` chooses the task from the config and draws the loss curve."""

import math
import shutil

import pytest

from psann_jax.config import TokenizerConfig
from psann_jax.data.corpus import Corpus
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.runs import training
from psann_jax.runs.evaluate import text_of, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import LOSS_CURVE, train_run
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train.loop import StopSignals
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.errors import UserError
from tests.support.tiny import sentences, tiny_config, write_text


def test_the_loss_curve_is_drawn_also_after_a_signal(tmp_path, monkeypatch):
    drawn = []
    draw = training.plot_loss_curve
    monkeypatch.setattr(training, "plot_loss_curve", lambda *args: (drawn.append(args), draw(*args)))
    monkeypatch.setattr(training, "_MIN_SECONDS", math.inf)  # at the end only
    config, workdir = tiny_config(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 2)
        summary = train_run(config, workdir)
    assert (summary["steps"], summary["stopped"]) == (2, True)
    assert (workdir / LOSS_CURVE).stat().st_size > 1000
    summary = train_run(config, workdir)
    assert summary["steps"] == 8
    numbers_of_rows = [sum(row["kind"] == "train" for row in rows) for rows, *_ in drawn]
    assert numbers_of_rows == [2, 8]
    assert [(path, title) for _, path, title, *_ in drawn] == [(workdir / LOSS_CURVE, "run")] * 2


def test_the_loss_curve_is_updated_during_training(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "plot_loss_curve", lambda rows, *_: drawn.append(rows[-1]["step"]))
    monkeypatch.setattr(training, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(training, "_COST_FACTOR", 0.0)
    train_run(tiny_config(tmp_path, eval__every=4, checkpoint__every=2), tmp_path / "run")
    assert drawn == [2, 4, 6, 8, 8]


def test_a_failed_start_does_not_stop_the_corrected_one(tmp_path):
    with pytest.raises(UserError, match=r"data\.max_length: is 100000, but the training text of .* has"):
        train_run(tiny_config(tmp_path, data__max_length=100_000, train__batch_tokens=100_000), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert train_run(tiny_config(tmp_path, train__steps=2), tmp_path / "run")["steps"] == 2


def test_a_run_keeps_its_tokenizer_when_the_cache_is_gone(tmp_path, monkeypatch):
    """A tokenizer that is trained again may be another one: of another sample, or at random, as of unigram."""
    settings = {"data__tokenizer__kind": "unigram", "data__tokenizer__vocab_size": 280}
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_run(tiny_config(tmp_path, **settings), whole)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "should_stop", lambda self, step: step == 4)
        train_run(tiny_config(tmp_path, **settings), run)
    monkeypatch.setattr(Corpus, "training_sample", lambda self, n_bytes: sentences(40, seed=3))
    settings["data__cache_dir"] = str(tmp_path / "new")
    assert train_run(tiny_config(tmp_path, **settings), run)["steps"] == 8
    assert not list((tmp_path / "new").glob("tokenizer-*"))
    expected, found = ([row.get("loss") for row in read_metrics(path / "metrics.jsonl")] for path in (whole, run))
    assert expected == found
    write_text(tmp_path / "text.txt", seed=1)
    expected = r"run: was trained on another content of .*text\.txt or with another tokenizer; restore it"
    with pytest.raises(UserError, match=expected):
        train_run(tiny_config(tmp_path, **settings, train__steps=9), run)


def test_a_run_of_an_earlier_version_on_a_tokenizer_with_dropout_is_named_as_such(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(sentences(), TokenizerConfig(kind="bpe", vocab_size=280), False).save(path)
    to_bytes, run = Tokenizer.to_bytes, tmp_path / "run"
    with monkeypatch.context() as patch:
        old, new = (rf"\"dropout\":{value}".encode() for value in ("null", "0.1"))
        patch.setattr(Tokenizer, "to_bytes", lambda self: to_bytes(self).replace(old, new))
        train_run(tiny_config(tmp_path, data__tokenizer__kind="auto", data__tokenizer__path=str(path)), run)
    config = tiny_config(tmp_path, data__tokenizer__kind="auto", data__tokenizer__path=str(path), train__steps=9)
    why = "the run's tokenizer has dropout, which this version switches off"
    with pytest.raises(UserError, match=rf"^{run}: {why}, so that .*; choose another --workdir$"):
        train_run(config, run)
    loaded = load_text_run(run)
    with pytest.raises(UserError, match=rf"^data\.tokenizer: {why}, so that .*; name a text with --data$"):
        validation_text(loaded)
    assert text_of(loaded, str(tmp_path / "text.txt")).n_valid_tokens


def test_another_text_is_refused_before_it_is_prepared(tmp_path):
    config = tiny_config(tmp_path, train__steps=2)
    train_run(config, tmp_path / "run")
    write_text(tmp_path / "other.txt", seed=1)
    before = set((tmp_path / "cache").glob("shards-*"))
    expected = (
        r"holds another run: data\.sources is .*text\.txt',\) there and .*other\.txt',\) here, with another content;"
    )
    with pytest.raises(UserError, match=expected):
        train_run(tiny_config(tmp_path, data__sources=(str(tmp_path / "other.txt"),)), tmp_path / "run")
    assert set((tmp_path / "cache").glob("shards-*")) == before
    shutil.copy(tmp_path / "text.txt", tmp_path / "other.txt")
    moved = tiny_config(tmp_path, data__sources=(str(tmp_path / "other.txt"),), train__steps=3)
    assert train_run(moved, tmp_path / "run")["steps"] == 3


def test_pictures_are_rare_and_their_failure_does_not_stop_the_run(tmp_path, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "plot_loss_curve", fail)
    curve = training._LossCurve(tmp_path)
    curve.task = LanguageModel.load(tiny_config(tmp_path), progress=False)
    curve.update()  # the run has just begun
    assert not calls
    curve._next = 0.0
    for _ in range(3):
        curve.update()
    assert len(calls) == 1


@pytest.mark.slow
def test_phases_that_have_begun_are_marked(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "plot_loss_curve", lambda *args: drawn.append(args))
    monkeypatch.setattr("psann_jax.tasks.lm.LanguageModel.phases", lambda self: {0: "easy", 3: "hard", 4: "harder"})
    train_run(tiny_config(tmp_path, train__steps=4), tmp_path / "run")
    assert drawn[0][3:] == ({0: "easy", 3: "hard"}, "token")


def test_weights_to_start_from_must_be_on_every_host(tmp_path):
    """Checked before they are read, which is collective: a process that lacks them would block the others."""
    for name in (str(tmp_path), f"hf:{tmp_path}", "s3://bucket/run"):
        training._check_visible(name)
    for name in (str(tmp_path / "none"), f"hf:{tmp_path / 'none'}"):
        with pytest.raises(UserError, match=rf"^train.init_from: {name}: is not on this host; use a disk that all sha"):
            training._check_visible(name)
