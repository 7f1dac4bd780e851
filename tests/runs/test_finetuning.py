"""A run on books, then on Shakespeare, then on questions with their answers."""

import json
import shutil

import numpy as np
import pytest

from psann_jax.convert.start import open_start
from psann_jax.runs.evaluate import evaluate, text_of, validation_text
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import train_run
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from psann_jax.train.metrics import read_metrics
from tests.support.tiny import tiny_config, write_text

ANSWERS = {"sun": "moon", "sea": "wave", "river": "stone", "under": "over"}
QUESTION = "After {}?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    write_text(folder / "books.txt", seed=1)
    write_text(folder / "shakespeare.txt", seed=2)
    pairs = [{"question": word, "answer": answer} for word, answer in ANSWERS.items()]
    chats = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": answer}]}
        for word, answer in ANSWERS.items()
    ]
    for name, records in (("questions.jsonl", pairs), ("chat.jsonl", chats)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records * 10))
    train_run(config_of(folder, "books.txt"), folder / "books")
    train_run(config_of(folder, "shakespeare.txt", "books"), folder / "shakespeare", open_start=open_start)
    train_run(questions_config(folder), folder / "questions", open_start=open_start)
    return folder


def config_of(folder, source, start="", **changes):
    model = {"model__dropout": 0.0, "model__d_model": 32, "data__max_length": 48, "train__batch_tokens": 384}
    given = {"data__sources": (str(folder / source),), "train__init_from": start and str(folder / start)}
    return tiny_config(folder, **{**model, **given, "checkpoint__every": 25, **changes})


def questions_config(folder, **changes):
    records = {"data__prompt_field": "question", "data__completion_field": "answer"}
    texts = {"data__valid_sources": (str(folder / "questions.jsonl"),), "data__valid_fraction": 0.01}
    length = {"train__steps": 75, "train__lr": 2e-2, "checkpoint__keep": 5, "eval__every": 25}
    template = {"data__template": QUESTION.format("{prompt}") + "{completion}"}
    return config_of(folder, "questions.jsonl", "shakespeare", **{**records, **texts, **length, **template, **changes})


def evaluations(workdir):
    return [row for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "eval"]


def test_each_run_begins_with_the_weights_of_the_one_before(folder):
    reports = [
        json.loads((folder / name / "initial_weights.json").read_bytes()) for name in ("shakespeare", "questions")
    ]
    assert [report["from"] for report in reports] == [str(folder / "books"), str(folder / "shakespeare")]
    assert all(report["new"] == report["unused"] == [] for report in reports)
    assert not (folder / "books" / "initial_weights.json").exists()


def test_it_learns_the_answers_and_not_the_questions(folder):
    first, *_, last = evaluations(folder / "questions")
    n_targets = sum(len(answer) + 1 for answer in ANSWERS.values())
    assert first["tokens"] % n_targets == 0, "the characters of the answers and the ends"
    assert last["loss"] < 0.1 < 1 < first["loss"]
    run = load_text_run(folder / "questions")
    sampler = TextSampler(run.sampler(), run.tokenizer)
    prompts = [QUESTION.format(word) for word in ANSWERS]
    options = GenerationOptions(max_new_tokens=8)
    done = list(sampler.complete(prompts, Sampling(temperature=0.0), options))
    assert [completion.text for completion in done] == list(ANSWERS.values())


def test_its_evaluation_counts_the_answers_only(folder):
    run = load_text_run(folder / "questions")
    last = evaluations(folder / "questions")[-1]
    for text in (validation_text(run), text_of(run, str(folder / "questions.jsonl"))):
        results = evaluate(run, text).results
        assert results["tokens"] == last["tokens"]
        for name in ("loss", "bits_per_byte", "accuracy"):
            assert results[name] == pytest.approx(last[name], rel=1e-5)
    n_bytes = sum(map(len, ANSWERS.values())) * 10
    assert last["bits_per_byte"] == pytest.approx(last["loss"] * last["tokens"] / np.log(2) / n_bytes, rel=1e-6)
    plain = text_of(run, str(folder / "questions.jsonl"), text_field="question")
    assert evaluate(run, plain).results["tokens"] > 0


def test_it_resumes_exactly(folder, tmp_path):
    shutil.copytree(folder / "questions", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_75")
    (tmp_path / "run" / "summary.json").unlink()
    train_run(questions_config(folder), tmp_path / "run", open_start=open_start)
    expected, found = (read_metrics(path / "metrics.jsonl") for path in (folder / "questions", tmp_path / "run"))
    assert [(row["step"], row["loss"]) for row in expected] == [(row["step"], row["loss"]) for row in found]


def test_dialogues_train_the_same_way(folder, tmp_path):
    fields = {"data__prompt_field": "", "data__completion_field": "", "data__template": "", "train__steps": 4}
    sources = {name: (str(folder / "chat.jsonl"),) for name in ("data__sources", "data__valid_sources")}
    config = questions_config(folder, data__messages_field="messages", **fields, **sources)
    train_run(config, tmp_path / "run", open_start=open_start)
    n_targets = sum(len(answer) + 2 for answer in ANSWERS.values())  # with the new line and the end
    assert evaluations(tmp_path / "run")[-1]["tokens"] % n_targets == 0
