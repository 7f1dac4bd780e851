"""A run on lm_eval tasks in local files, compared with direct computation."""

import functools
import json
import math
import sys

import pytest

from psann_jax.cli import lm_eval as command
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.score import Scorer
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.utils.errors import UserError
from tests.support.saved import save_run
from tests.support.tiny import WORDS, tiny_config

GREEDY = Sampling(temperature=0.0, top_p=1.0)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: {kind}
test_split: train
doc_to_text: "{text}"
"""
CHOICE = """
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
doc_to_target: "{{context}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
GENERATE = """
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["~"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module", autouse=True)
def one_index():
    """Managers of tasks are made once per folder: each reads the thousands of task files of lm_eval."""
    from lm_eval import tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", functools.cache(tasks.TaskManager))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a run with random parameters."""
    tmp_path = tmp_path_factory.mktemp("judged")
    save_run(tmp_path / "run", tiny_config(tmp_path), {4: 1.0})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def run(workdir):
    """The loaded run."""
    return load_text_run(workdir)


@pytest.fixture(scope="module")
def scorer(run):
    """A scorer of the run."""
    return Scorer(run)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with three tasks on the same records, and the records."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {"context": " ".join(WORDS[i:] + WORDS[:i]), "choices": [WORDS[i], WORDS[-1] + " sea", "x"], "label": i % 3}
        for i in range(8)
    ]
    docs[0]["context"] = ""
    docs = [{**doc, "answer": doc["choices"][doc["label"]]} for doc in docs]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    kinds = {
        "tiny_choice": ("multiple_choice", "{{context}}", CHOICE),
        "tiny_rolling": ("loglikelihood_rolling", "", ROLLING),
        "tiny_generate": ("generate_until", "{{context}}", GENERATE),
    }
    for name, (kind, text, rest) in kinds.items():
        task = TASK.format(name=name, data=folder / "docs.jsonl", kind=kind, text=text)
        (folder / f"{name}.yaml").write_text(task + rest)
    return folder, docs


def results_of(workdir, folder, *flags):
    out = folder / "results.json"
    command.main([f"--workdir={workdir}", f"--include_path={folder}", f"--json={out}", *flags])
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(workdir, tasks):
    """Results of the command, which caches answers in a file."""
    names = "--tasks=tiny_choice,tiny_rolling,tiny_generate"
    return results_of(workdir, tasks[0], names, "--limit=6", f"--use_cache={tasks[0] / 'answers'}")


def logprob(run, scorer, context, text):
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode(context)]
    return scorer([(ids, run.tokenizer.encode(text))])[0].logprob


def test_accuracies_equal_the_direct_computation(found, run, scorer, tasks):
    correct = normed = 0
    for doc in tasks[1][:6]:
        # lm_eval puts a space between context and choice and scores it with the choice.
        scores = [logprob(run, scorer, doc["context"], f" {choice}") for choice in doc["choices"]]
        correct += max(range(3), key=scores.__getitem__) == doc["label"]
        normed += max(range(3), key=lambda i: scores[i] / len(doc["choices"][i])) == doc["label"]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(correct / 6)
    assert found["results"]["tiny_choice"]["acc_norm,none"] == pytest.approx(normed / 6)
    assert (found["step"], found["tasks"][0], found["limit"]) == (4, "tiny_choice", 6)


def test_whole_texts_are_scored_window_by_window(found, run, scorer, tasks):
    total = n_bytes = 0
    for doc in tasks[1][:6]:
        ids = [run.tokenizer.bos_id, *run.tokenizer.encode(doc["context"])]
        n_bytes += len(doc["context"].encode())
        # Every window is full, but only its new tokens are scored.
        for start in range(0, len(ids) - 1, 32):
            new = ids[1 + start : 33 + start]
            context = ids[max(0, start + len(new) - 32) : 1 + start]
            total += scorer([(context, new)])[0].logprob
    bits = -total / n_bytes / math.log(2)
    assert found["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.slow
def test_generation_is_greedy_and_limited(run):
    from lm_eval.api.instance import Instance

    from psann_jax.runs.lm_eval_model import LmEvalModel

    model = LmEvalModel(run, batch_size=2)
    prompts = ["the sun", "the sun " * 20, "moon", ""]

    def ask(**options):
        requests = [Instance("generate_until", {}, (prompt, options), 0) for prompt in prompts]
        return model.generate_until(requests)

    texts = ask(until=["~"], max_gen_toks=6)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = [run.tokenizer.bos_id, *run.tokenizer.encode(prompt)][-26:]
        (want,) = model._sampler.complete([prompt], GREEDY, GenerationOptions(max_new_tokens=6, max_prompt_tokens=26))
        assert text == want.text
        assert len(want.tokens) <= 6
        assert model._scorer([(ids, want.tokens)])[0].greedy
    first = texts[0][:1]
    assert ask(until=first, max_gen_toks=6)[0] == "", "a stop string at the very beginning"
    assert ask(until=["~"], max_gen_toks=6, do_sample=True, temperature=1.0) != texts
    with pytest.raises(UserError, match="gen_kwargs: num_beams: not supported"):
        ask(num_beams=4)
    with pytest.raises(UserError, match="max_gen_toks: is 32, must be below the context length of 32"):
        ask(max_gen_toks=32)


@pytest.mark.slow
def test_answers_are_cached_and_reused(found, workdir, tasks, monkeypatch, capsys):
    monkeypatch.setattr(Scorer, "__call__", lambda *args, **kwargs: pytest.fail("scored again"))
    flags = ("--tasks=tiny_choice,tiny_rolling", "--limit=6", f"--use_cache={tasks[0] / 'answers'}")
    again = results_of(workdir, tasks[0], *flags)["results"]
    assert again == {name: found["results"][name] for name in again}
    assert "tiny_rolling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=tiny_chioce"], "--tasks: lm_eval has no task tiny_chioce"),
        (["--tasks=tiny_choice", "--workdir=/no/such/run"], "there is no such directory"),
    ],
)
def test_errors_name_the_cause(workdir, tasks, flags, message):
    with pytest.raises(UserError, match=message):
        command.main([f"--workdir={workdir}", f"--include_path={tasks[0]}", *flags])


@pytest.mark.slow
def test_missing_task_data_is_named(workdir, tasks, tmp_path):
    text = TASK.format(name="tiny_gone", data=tmp_path / "gone.jsonl", kind="multiple_choice", text="x")
    (tmp_path / "tiny_gone.yaml").write_text(text + CHOICE)
    with pytest.raises(UserError, match=r"--tasks: the data of tiny_gone cannot be loaded: .*gone\.jsonl"):
        command.main([f"--workdir={workdir}", f"--include_path={tmp_path}", "--tasks=tiny_gone"])


def test_the_missing_library_is_named(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"lm_eval: needs lm_eval; pip install 'psann_jax\[lm_eval\]'"):
        command.main([f"--workdir={workdir}", "--tasks=x"])
