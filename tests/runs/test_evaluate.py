"""The evaluate command: reproduces the run's validation loss, evaluates other texts, reports errors."""

import json
import math

import jax
import numpy as np
import pytest

from psann_jax.cli import evaluate as command
from psann_jax.data.loader import load_text
from psann_jax.runs.evaluate import evaluate, text_of, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config, write_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a trained run whose validation text is a separate file, and the run's summary."""
    tmp_path = tmp_path_factory.mktemp("trained")
    valid = write_text(tmp_path / "valid.txt", n_lines=60, seed=7)
    config = tiny_config(
        tmp_path, model__n_layers=1, data__valid_sources=(str(valid),), data__valid_fraction=0.01, train__steps=3
    )
    summary = loop.train(config, lambda: LanguageModel.load(config, progress=False), tmp_path / "run")
    return tmp_path, summary


@pytest.fixture(scope="module")
def run(trained):
    """The loaded run."""
    return load_text_run(trained[0] / "run")


def assert_equals_summary(result, summary):
    for name in ("loss", "ppl", "accuracy", "bits_per_byte"):
        assert result[name] == pytest.approx(summary[f"val_{name}"], rel=1e-6), name


def test_the_validation_text_of_the_run_gives_its_val_loss(trained, run):
    result = evaluate(run, validation_text(run))
    assert_equals_summary(result, trained[1])
    assert result["tokens"] == validation_text(run).n_valid_tokens - 60, "all tokens but the first of each document"


def test_the_same_text_as_a_source_gives_the_same_loss(trained, run):
    tmp_path, summary = trained
    assert_equals_summary(evaluate(run, text_of(run, str(tmp_path / "valid.txt"))), summary)
    assert_equals_summary(evaluate(run, text_of(run, str(tmp_path / "valid.txt")), batch_size=2), summary)


def test_a_short_text_is_evaluated_to_its_last_token(run, tmp_path):
    (tmp_path / "short.txt").write_text("the moon\nsea\n")
    text = text_of(run, str(tmp_path / "short.txt"))
    rows = [[run.tokenizer.bos_id, *run.tokenizer.encode(t), run.tokenizer.eos_id] for t in ("the moon", "sea")]
    padded = np.array([row + [0] * (16 - len(row)) for row in rows])

    @jax.jit
    def log_p(params):
        model = run.network.merge(params)
        return jax.nn.log_softmax(model.logits(model.hidden(padded)[0]))

    predicted = np.asarray(log_p(run.params), np.float64)
    terms = [predicted[i, t, row[t + 1]] for i, row in enumerate(rows) for t in range(len(row) - 1)]
    nll, n = -sum(terms), len(terms)
    result = evaluate(run, text)
    assert result["tokens"] == n
    assert result["loss"] == pytest.approx(nll / n, rel=1e-5)
    assert result["ppl"] == pytest.approx(math.exp(nll / n), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(nll / math.log(2) / len("the moonsea"), rel=1e-5)


def test_document_and_text_field_take_effect(run, tmp_path):
    (tmp_path / "a.txt").write_text("the moon\nsea\n")
    (tmp_path / "a.jsonl").write_text('{"body": "the moon\\nsea\\n"}\n')
    lines, whole = (text_of(run, str(tmp_path / "a.txt"), document=document) for document in ("line", "file"))
    field = text_of(run, str(tmp_path / "a.jsonl"), text_field="body")
    for name, array in whole.valid_windows[0].items():
        np.testing.assert_array_equal(field.valid_windows[0][name], array)
    assert (whole.n_valid_tokens, lines.n_valid_tokens) == (len("the moon\nsea\n") + 2, len("the moonsea") + 4)


def test_max_tokens_is_rounded_down_to_whole_windows(run):
    length = run.config.data.max_length
    n = evaluate(run, validation_text(run), max_tokens=3 * length + 1)["tokens"]
    assert 2 * length < n <= 3 * length


def test_the_command_prints_lines_or_json(trained, capsys):
    tmp_path, summary = trained
    command.main([f"--workdir={tmp_path / 'run'}"])
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["loss", "ppl", "accuracy", "bits_per_byte", "tokens"]
    assert "step 3" in err
    source = str(tmp_path / "valid.txt")
    command.main([f"--workdir={tmp_path / 'run'}", f"--data={source}", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["step"]) == (source, 3)
    assert_equals_summary(result, summary)


def test_a_changed_validation_text_is_refused(trained, run):
    tmp_path, _ = trained
    valid = tmp_path / "valid.txt"
    before = valid.read_text()
    valid.write_text("another text\nof two lines\n")
    try:
        with pytest.raises(UserError, match=r"^data.sources: differ from the text that the run was trained on"):
            validation_text(run)
    finally:
        valid.write_text(before)
    assert load_text(run.config.data).fingerprint == run.data


def test_errors_name_the_cause(trained, run, tmp_path, capsys):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"blank.txt: has no text"):
        text_of(run, str(tmp_path / "blank.txt"))
    with pytest.raises(UserError, match=r"^--data: there is no file 'nowhere.txt'"):
        text_of(run, "nowhere.txt")
    with pytest.raises(UserError, match=r"^batch_size: is 0"):
        evaluate(run, validation_text(run), batch_size=0)
    with pytest.raises(UserError, match=r"^max_tokens: is -1"):
        evaluate(run, validation_text(run), max_tokens=-1)
    with pytest.raises(SystemExit) as ended:
        command.main([f"--workdir={trained[0] / 'run'}", "--text_field=body"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --text_field: has no effect without --data\n"
