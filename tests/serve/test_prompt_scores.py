"""Log-probabilities of prompts: echo with logprobs, as lm-eval asks for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.runs.restore import load_text_run
from psann_jax.runs.score import Scorer
from tests.support.serving import ask, events
from tests.support.tiny import sentences

COMPLETIONS = "/v1/completions"


def complete(server, **fields):
    status, _, answer = ask(server, COMPLETIONS, {"model": "wave", "echo": True, "temperature": 0, **fields})
    assert status == 200, answer
    return answer


@pytest.fixture(scope="module")
def run(workdirs):
    return load_text_run(workdirs["wave"])


@pytest.fixture(scope="module")
def logprobs_of(run):
    """A function that gives the log-probabilities (L, V) after each token, from a full forward pass."""
    model = run.network.merge(run.params)

    def compute(ids):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(model(padded))[0, : len(ids)].astype(np.float64)
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    return compute


@pytest.mark.parametrize("n_top", [0, 1, 5])
@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_the_prompt_has_the_log_probabilities_of_the_full_forward_pass(server, run, logprobs_of, n_top, max_tokens):
    prompt = "a wave sings é"
    answer = complete(server, prompt=prompt, max_tokens=max_tokens, logprobs=n_top)
    (choice,), usage = answer["choices"], answer["usage"]
    found = choice["logprobs"]
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode(prompt)]
    n = len(ids)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (n, len(found["tokens"]) - n)
    assert usage["completion_tokens"] <= max_tokens
    assert (choice["finish_reason"] == "length") == (usage["completion_tokens"] == max_tokens)
    assert choice["text"].startswith(prompt)
    assert choice["text"] == prompt or max_tokens
    assert found["tokens"][:7] == ["<bos>", *"a wave"]
    assert (found["token_logprobs"][0], found["top_logprobs"][0], found["text_offset"][0]) == (None, None, 0)
    expected = logprobs_of(ids)
    own = np.take_along_axis(expected[:-1], np.array(ids[1:])[:, None], -1)[:, 0]
    np.testing.assert_allclose(found["token_logprobs"][1:n], own, atol=2e-5)
    for i, top in enumerate(found["top_logprobs"][1:n], 1):
        values = sorted(top.values(), reverse=True)[:n_top]
        np.testing.assert_allclose(values, np.sort(expected[i - 1])[::-1][:n_top], atol=2e-5)
        assert top[found["tokens"][i]] == found["token_logprobs"][i]
    assert found["text_offset"][1:n] == [*range(len(prompt)), len(prompt) - 1], (
        "of the two bytes of é, both begin there"
    )
    assert all(offset >= len(prompt) for offset in found["text_offset"][n:])


def test_what_follows_is_what_follows_without_echo(server):
    same = {"prompt": ["a wave", "stone"], "max_tokens": 9, "logprobs": 2, "n": 2, "temperature": 1, "seed": 3}
    plain, echoed = complete(server, **same, echo=False), complete(server, **same)
    for prompt, one, other in zip(["a wave"] * 2 + ["stone"] * 2, plain["choices"], echoed["choices"], strict=True):
        n = 1 + len(prompt)
        assert other["text"] == prompt + one["text"]
        assert other["logprobs"]["tokens"][n:] == one["logprobs"]["tokens"]
        np.testing.assert_allclose(
            other["logprobs"]["token_logprobs"][n:], one["logprobs"]["token_logprobs"], atol=2e-5
        )
        assert other["logprobs"]["text_offset"][n:] == [len(prompt) + at for at in one["logprobs"]["text_offset"]]


def test_token_ids_are_scored_as_they_are(server, run):
    ids = run.tokenizer.encode("stone")
    (choice,) = complete(server, prompt=ids, max_tokens=0, logprobs=0)["choices"]
    assert choice["text"] == "stone"
    assert choice["logprobs"]["tokens"] == list("stone")
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert choice["logprobs"]["token_logprobs"][0] is None


def test_a_stream_has_the_same(server):
    same = {"prompt": "a wave", "max_tokens": 12, "logprobs": 2, "seed": 4, "temperature": 1.2}
    (whole,) = complete(server, **same)["choices"]
    pieces = [choice for event in events(complete(server, **same, stream=True)) for choice in event["choices"]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == values
    (only,) = events(complete(server, **{**same, "max_tokens": 0}, stream=True))
    assert (only["choices"][0]["text"], only["choices"][0]["finish_reason"]) == ("a wave", "length")


def test_the_longest_prompt(server, run):
    ids = [run.tokenizer.bos_id] * 64
    assert len(complete(server, prompt=ids, max_tokens=0, logprobs=1)["choices"][0]["logprobs"]["tokens"]) == 64
    status, _, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": ids, "echo": True, "max_tokens": 1})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_lm_eval_gets_the_scores_of_the_scorer(server, run):
    """Its `local-completions` model: what it asks for, and how it reads the answer."""
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="needs lm_eval").LocalCompletionsAPI
    tokenizer = run.tokenizer
    texts = sentences(12, seed=3)
    pairs = [([tokenizer.bos_id, *tokenizer.encode(t[:5])], tokenizer.encode(t[5:50])) for t in texts]
    expected = Scorer(run)(pairs)
    wanted = completions._create_payload(Model, [context + rest for context, rest in pairs])
    status, _, answer = ask(server, COMPLETIONS, wanted)
    assert status == 200, answer
    found = completions.parse_logprobs(answer, ctxlens=[len(context) for context, _ in pairs])
    np.testing.assert_allclose([value for value, _ in found], [score.logprob for score in expected], atol=1e-3)
    assert [greedy for _, greedy in found] == [score.greedy for score in expected]


def test_lm_eval_recognises_a_greedy_continuation(server, run):
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="needs lm_eval").LocalCompletionsAPI
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode("a")]
    model = run.network.merge(run.params)
    whole = list(ids)
    for _ in range(6):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(whole)] = whole
        whole.append(int(np.asarray(model(padded))[0, len(whole) - 1].argmax()))
    _, _, answer = ask(server, COMPLETIONS, completions._create_payload(Model, [whole]))
    ((_, is_greedy),) = completions.parse_logprobs(answer, ctxlens=[len(ids)])
    assert is_greedy


class Model:
    """What lm_eval's payload reads of its own class."""

    model = "wave"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 259), min_size=1, max_size=40))
def test_any_token_ids_have_scores_and_offsets(server, ids):
    (choice,) = complete(server, prompt=ids, max_tokens=0, logprobs=1)["choices"]
    found = choice["logprobs"]
    assert {len(values) for values in found.values()} == {len(ids)}
    assert found["text_offset"] == sorted(found["text_offset"])
    assert all(0 <= offset <= len(choice["text"]) for offset in found["text_offset"])
    assert all(value is None or value <= 0 for value in found["token_logprobs"])
