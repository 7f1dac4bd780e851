"""The evaluate command: reproduces the run's validation loss, evaluates other texts, reports errors."""

import itertools
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
from psann_jax.train.checkpoint_reader import CheckpointReader
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
    result = evaluate(run, validation_text(run)).results
    assert_equals_summary(result, trained[1])
    assert result["tokens"] == validation_text(run).n_valid_tokens - 60, "all tokens but the first of each document"


@pytest.mark.parametrize(("demanded", "used"), [("cudnn", "auto"), ("plain", "plain")])
def test_a_run_that_demanded_a_kernel_can_be_evaluated_on_other_devices(demanded, used, trained, run, monkeypatch):
    metadata = CheckpointReader.metadata

    def with_kernel(self, step):
        found = metadata(self, step)
        found["config"]["model"]["attention"] = demanded
        return found

    monkeypatch.setattr(CheckpointReader, "metadata", with_kernel)
    other = load_text_run(trained[0] / "run")
    assert other.config.model.attention == other.network.config.attention == used
    assert_equals_summary(evaluate(other, validation_text(run)).results, trained[1])


def test_the_same_text_as_a_source_gives_the_same_loss(trained, run):
    tmp_path, summary = trained
    assert_equals_summary(evaluate(run, text_of(run, str(tmp_path / "valid.txt"))).results, summary)
    assert_equals_summary(evaluate(run, text_of(run, str(tmp_path / "valid.txt")), batch_size=2).results, summary)


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
    result = evaluate(run, text).results
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
    n = evaluate(run, validation_text(run), max_tokens=3 * length + 1).results["tokens"]
    assert 2 * length < n <= 3 * length


def test_the_command_prints_lines_or_json(trained, capsys):
    tmp_path, summary = trained
    command.main([f"--workdir={tmp_path / 'run'}"])
    out, err = capsys.readouterr()
    results, positions = out.split("\n\n")
    names = ["loss", "loss_stderr", "ppl", "accuracy", "bits_per_byte", "tokens"]
    assert [line.split()[0] for line in results.splitlines()] == names
    assert [line.split()[0] for line in positions.splitlines()] == ["position", "1-16", "17-32"]
    assert "step 3" in err
    source = str(tmp_path / "valid.txt")
    command.main([f"--workdir={tmp_path / 'run'}", f"--data={source}", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["step"]) == (source, 3)
    assert [part["name"] for part in result["by_position"]] == ["1-16", "17-32"]
    assert [(part["name"], part["tokens"]) for part in result["by_source"]] == [(source, result["tokens"])]
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
    with pytest.raises(UserError, match=r"^stride: is 33, must be 1 to data.max_length=32"):
        evaluate(run, validation_text(run), stride=33)
    with pytest.raises(SystemExit) as ended:
        command.main([f"--workdir={trained[0] / 'run'}", "--text_field=body"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --text_field: has no effect without --data\n"


@pytest.fixture(scope="module")
def losses_by_token(run):
    """A function of token ids that returns the cross entropy of each but the first, without other tokens around."""

    @jax.jit
    def log_p(params, row):
        model = run.network.merge(params)
        return jax.nn.log_softmax(model.logits(model.hidden(row[None])[0])[0])

    def losses(ids):
        predicted = np.asarray(log_p(run.params, np.pad(np.array(ids), (0, 64 - len(ids)))))
        return [-float(predicted[t, token]) for t, token in enumerate(ids[1:])]

    return losses


def test_losses_by_position_and_file_are_those_of_the_tokens(run, losses_by_token, tmp_path):
    texts = {"a": ["the moon under the sea", "a"], "b": ["river stone falls over a bright sun"]}
    for name, lines in texts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    documents = [
        [run.tokenizer.bos_id, *run.tokenizer.encode(t), run.tokenizer.eos_id] for t in itertools.chain(*texts.values())
    ]
    positions, sources = {}, {}
    # Windows of 32 targets, within which each document is a segment of its own.
    tokens, starts = list(itertools.chain(*documents)), np.cumsum([0, *map(len, documents)])
    for start in range(0, len(tokens) - 1, 32):
        for d in range(3):
            a, b = max(starts[d], start), min(starts[d + 1], start + 33)
            if b - a > 1:
                for i, loss in enumerate(losses_by_token(tokens[a:b]), 1):
                    positions.setdefault("1-16" if i <= 16 else "17-32", []).append(loss)
                    sources.setdefault(str(tmp_path / ("b.txt" if d == 2 else "a.txt")), []).append(loss)
    found = evaluate(run, text_of(run, str(tmp_path / "*.txt"), document="line")).parts
    for kind, expected in (("position", positions), ("source", sources)):
        assert [part.name for part in found[kind]] == list(expected)
        for part in found[kind]:
            assert part.tokens == len(expected[part.name])
            assert part.loss == pytest.approx(np.mean(expected[part.name]), rel=1e-5)


@pytest.mark.parametrize("stride", [5, 8])
def test_with_a_stride_every_target_sees_the_tokens_before_it(run, losses_by_token, tmp_path, stride):
    text = "the moon under the sea sings over a bright river stone and falls\nthe sun\n"
    (tmp_path / "long.txt").write_text(text)
    data = text_of(run, str(tmp_path / "long.txt"), document="line")
    documents = [[run.tokenizer.bos_id, *run.tokenizer.encode(t), run.tokenizer.eos_id] for t in text.splitlines()]
    tokens, first = list(itertools.chain(*documents)), len(documents[0])
    losses = []
    for t in range(1, len(tokens)):
        if t != first:
            # The window that predicts token t begins at the last multiple of the stride from which 32 tokens reach it.
            window = max(-(-(t - 32) // stride), 0) * stride
            losses += losses_by_token(tokens[max(window, first if t > first else 0) : t + 1])[-1:]
    result = evaluate(run, data, stride=stride, batch_size=3)
    assert result.results["tokens"] == len(losses) == len(tokens) - 2
    assert result.results["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    shares = {part.name: part.tokens for part in result.parts["position"]}
    assert shares["17-32"] >= first - 1 - 16, "after the first window, each target of the long line sees 17 or more"
    whole = evaluate(run, data, stride=32, batch_size=3)
    assert whole == evaluate(run, data, batch_size=3)
