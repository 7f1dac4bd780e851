"""The server's answers: texts, streams, log-probabilities, usage, errors."""

import json
import threading

import numpy as np
import pytest

from psann_jax.runs.restore import load_text_run
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from tests.support.serving import ask, events

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def sampler(workdirs):
    run = load_text_run(workdirs["wave"])
    return TextSampler(run.sampler(), run.tokenizer)


def complete(server, **fields):
    status, _, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a wave", **fields})
    assert status == 200, answer
    return answer


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def streamed(server, **fields):
    return events(complete(server, stream=True, **fields))


def joined(pieces):
    """The text, the tokens, the offsets and the finish of each choice of a stream."""
    found = {}
    for piece in pieces:
        for choice in piece["choices"]:
            one = found.setdefault(choice["index"], {"text": "", "tokens": [], "offsets": [], "finish": None})
            one["text"] += choice["text"]
            one["finish"] = choice["finish_reason"]
            if choice["logprobs"]:
                one["tokens"] += choice["logprobs"]["tokens"]
                one["offsets"] += choice["logprobs"]["text_offset"]
    return [found[i] for i in sorted(found)]


# --- texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 0}, Sampling(0.0)),
        ({}, Sampling(top_p=1.0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, Sampling(0.7, 20, 0.8)),
        ({"temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.3}, Sampling(1.5, 0, 1.0, 0.05, 1.3)),
    ],
)
def test_texts_are_those_of_the_sampler_with_the_same_seed(server, sampler, fields, sampling):
    answer = complete(server, prompt=["a wave", "", "stone"], n=2, max_tokens=20, seed=7, **fields)
    options = GenerationOptions(max_new_tokens=20, seed=7, num_samples=2)
    expected = list(sampler.complete(["a wave", "", "stone"], sampling, options))
    assert texts(answer) == [one.text for one in expected]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    reasons = {"eos": "stop", "length": "length"}
    assert [choice["finish_reason"] for choice in answer["choices"]] == [reasons[one.finish] for one in expected]
    n = {"prompt_tokens": 7 + 1 + 6, "completion_tokens": sum(len(one.tokens) for one in expected)}
    assert answer["usage"] == {**n, "total_tokens": sum(n.values())}


def test_the_head_of_an_answer(server):
    answer = complete(server)
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == ("text_completion", "wave", "step-6")
    assert answer["id"] != complete(server)["id"]
    assert answer["usage"]["completion_tokens"] <= 16, "OpenAI's default"


def test_another_model_gives_another_text(server):
    same = {"temperature": 0, "max_tokens": 12}
    assert complete(server, **same)["choices"] != complete(server, model="gravity", **same)["choices"]


def test_without_a_seed_texts_differ(server):
    assert len({texts(complete(server, temperature=2))[0] for _ in range(3)}) > 1


def test_token_ids_are_a_prompt(server, sampler):
    ids = [sampler.tokenizer.bos_id, *sampler.tokenizer.encode("a wave")]
    expected = texts(complete(server, seed=3))
    assert texts(complete(server, prompt=ids, seed=3)) == expected
    assert texts(complete(server, prompt=[ids, ids[1:]], seed=3))[0] == expected[0]


def test_a_stop_string_ends_a_text(server):
    (plain,) = texts(complete(server, temperature=0, max_tokens=30))
    stop = plain[4:6]
    for stops in (stop, [stop, "never so"]):
        answer = complete(server, temperature=0, max_tokens=30, stop=stops)
        assert texts(answer) == [plain[: plain.index(stop)]]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 30


def test_echo_begins_with_the_prompt(server, sampler):
    same = {"temperature": 0, "max_tokens": 5}
    plain, echoed = complete(server, **same)["choices"][0], complete(server, echo=True, **same)["choices"][0]
    assert echoed["text"] == "a wave" + plain["text"]


def test_a_bias_forces_and_forbids_tokens(server):
    same = {"temperature": 1, "max_tokens": 12, "seed": 2, "logprobs": 1}
    (plain,) = complete(server, **same)["choices"]
    (biased,) = complete(server, **same, logit_bias={str(ord("x") + 4): 100})["choices"]  # of the byte tokenizer
    assert biased["text"] == "x" * 12
    tops = [choice["logprobs"]["top_logprobs"][0] for choice in (plain, biased)]
    assert max(tops[0].items(), key=lambda pair: pair[1])[0] in tops[1], "log-probabilities are those of the model"
    greedy = {"temperature": 0, "max_tokens": 1, "prompt": "a wave"}
    (found,) = complete(server, **greedy, logprobs=0)["choices"]
    banned = str(sum(found["logprobs"]["tokens"][0].encode()[:1]) + 4)
    assert texts(complete(server, **greedy, logit_bias={banned: -100})) != [found["text"]]


def test_a_penalty_avoids_what_was_generated(server):
    same = {"temperature": 0, "max_tokens": 12, "logit_bias": {str(ord(c) + 4): 100 for c in "ab"}}
    assert len(set(*texts(complete(server, **same)))) == 1
    assert len(set(*texts(complete(server, **same, frequency_penalty=-2)))) == 1
    assert set(*texts(complete(server, **same, frequency_penalty=2))) == {"a", "b"}


def test_best_of_gives_the_most_probable_texts(server):
    same = {"prompt": ["a wave", "stone"], "seed": 6, "max_tokens": 10, "temperature": 1.5, "logprobs": 0}
    every = complete(server, **same, n=5)
    best = complete(server, **same, n=2, best_of=5)
    mean = [np.mean(choice["logprobs"]["token_logprobs"]) for choice in every["choices"]]
    ranked = [sorted(group, key=lambda i: -mean[i])[:2] for group in (range(5), range(5, 10))]
    assert texts(best) == [every["choices"][i]["text"] for group in ranked for i in group]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == every["usage"], "all that were generated"


# --- log-probabilities ----------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_sampler(server, sampler):
    (expected,) = sampler.complete(["a wave"], Sampling(1.3, top_p=1.0), GenerationOptions(max_new_tokens=20, seed=5))
    answer = complete(server, temperature=1.3, max_tokens=20, seed=5, logprobs=4)["choices"][0]
    found = answer["logprobs"]
    np.testing.assert_allclose(found["token_logprobs"], expected.logprobs, atol=1e-4)
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob
        assert len(top) in (4, 5)
        values = list(top.values())[:4]
        assert values == sorted(values, reverse=True), "the most probable one comes first"
    assert all(0 <= offset <= len(answer["text"]) for offset in found["text_offset"])


def test_tokens_and_offsets_spell_the_text(server):
    for seed in range(3):
        answer = complete(server, seed=seed, max_tokens=40, logprobs=1, temperature=0.5)["choices"][0]
        found = answer["logprobs"]
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if not token.startswith(("bytes:", "<")):
                assert answer["text"][offset : offset + len(token)] == token


def test_a_stop_string_also_ends_the_logprobs(server):
    (plain,) = texts(complete(server, temperature=0, max_tokens=30))
    answer = complete(server, temperature=0, max_tokens=30, stop=plain[4:6], logprobs=0)["choices"][0]
    assert len(answer["logprobs"]["tokens"]) == len(answer["text"].encode("utf-8", "replace")) or "\ufffd" in plain
    assert all(offset < len(answer["text"]) for offset in answer["logprobs"]["text_offset"])


# --- streams --------------------------------------------------------------------------------------------


def test_a_stream_has_the_same_texts_as_a_whole_answer(server):
    same = {"n": 3, "seed": 4, "max_tokens": 40, "logprobs": 2, "stop": ["qq"]}
    whole = complete(server, **same)
    pieces = streamed(server, **same)
    for one, choice in zip(joined(pieces), whole["choices"], strict=True):
        logprobs = choice["logprobs"]
        expected = (choice["text"], logprobs["tokens"], logprobs["text_offset"], choice["finish_reason"])
        assert (one["text"], one["tokens"], one["offsets"], one["finish"]) == expected
    assert len({piece["id"] for piece in pieces}) == 1
    assert "usage" not in pieces[0]
    *pieces, last = streamed(server, stream_options={"include_usage": True}, **same)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(piece["usage"] is None for piece in pieces)


def test_a_token_comes_with_or_after_its_text(server):
    for seed in range(4):
        text = ""
        for piece in streamed(server, seed=seed, max_tokens=50, logprobs=0, temperature=1.5):
            (choice,) = piece["choices"]
            text += choice["text"]
            for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
                is_text = not token.startswith(("bytes:", "<"))
                assert text[offset : offset + len(token)] == token if is_text else offset <= len(text)
                assert token == "<eos>" or offset < len(text)


def test_texts_do_not_depend_on_what_else_is_asked(server):
    """Many requests at once, with more texts than slots, and each answer is that of the request alone."""
    wanted = [
        {
            "prompt": "a wave"[: i % 7],
            "seed": i,
            "max_tokens": 5 + i,
            "temperature": (0, 0.7, 1.5)[i % 3],
            "logprobs": i % 4,
        }
        for i in range(24)
    ]
    alone = [complete(server, **fields)["choices"] for fields in wanted]
    together = [None] * len(wanted)

    def work(i):
        stream = streamed(server, **wanted[i]) if i % 2 else None
        together[i] = complete(server, **wanted[i])["choices"] if stream is None else joined(stream)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert [choice["text"] for choice in one] == [choice["text"] for choice in other], wanted[i]
        if not i % 2:
            assert one == other


# --- models and errors ----------------------------------------------------------------------------------


def test_models_are_listed(server):
    _, _, answer = ask(server, "/v1/models")
    assert [card["id"] for card in answer["data"]] == ["wave", "gravity"]
    card = answer["data"][0]
    assert (card["object"], card["base"], card["step"], card["max_model_len"]) == ("model", "waveresnet", 6, 64)
    assert ask(server, "/v1/models/wave")[2] == card
    status, _, answer = ask(server, "/v1/models/none")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt"}, 404, "model", "model: 'gpt' is not served; there are wave, gravity"),
        ({"model": None}, 400, "model", "model: is missing"),
        ({"prompt": None}, 400, "prompt", "prompt: is missing"),
        ({"prompt": []}, 400, "prompt", "prompt: is an empty list"),
        ({"prompt": ["a", 1]}, 400, "prompt", "prompt: must be a text, a list of texts, a list of token ids"),
        ({"prompt": [1, 260]}, 400, "prompt", "prompt: has token id 260, outside the 260 ids"),
        ({"prompt": [[1], [-1]]}, 400, "prompt", "prompt: has token id -1"),
        ({"prompt": "\ud800"}, 400, "prompt", "prompt: cannot be encoded"),
        ({"prompt": "a" * 60}, 400, "max_tokens", "max_tokens: 16 and a prompt of 61 tokens, bos included, are more"),
        ({"max_tokens": 0}, 400, "max_tokens", "max_tokens: is 0, must be at least 1 without echo"),
        ({"max_tokens": -1}, 400, "max_tokens", "max_tokens: is -1, must be at least 0"),
        ({"max_tokens": 2.5}, 400, "max_tokens", "max_tokens: is 2.5, must be a whole number"),
        ({"max_tokens": True}, 400, "max_tokens", "max_tokens: is True, must be a whole number"),
        ({"n": 10**9}, 400, "n", "n: makes 1000000000 texts of the prompts, more than the 260"),
        ({"temperature": -1}, 400, "temperature", "temperature: is -1.0, must be 0"),
        ({"temperature": "hot"}, 400, "temperature", "temperature: is 'hot', must be a number"),
        ({"top_p": 0}, 400, "top_p", "top_p: is 0.0, must be above 0"),
        ({"top_k": -1}, 400, "top_k", "top_k: is -1, must be at least 0"),
        ({"logprobs": 11}, 400, "logprobs", "logprobs: is 11, must be from 0 to 10"),
        ({"stop": ["a"] * 5}, 400, "stop", "stop: has 5 texts, must be at most 4"),
        ({"stop": [""]}, 400, "stop", "stop: must be a text or several"),
        ({"seed": -1}, 400, "seed", "seed: is -1, must be from 0"),
        ({"stream_options": {}}, 400, "stream_options", "stream_options: has no effect without stream"),
        ({"stream": "yes"}, 400, "stream", "stream: is 'yes', must be true or false"),
        ({"suffix": "end"}, 400, "suffix", "suffix: is 'end', but this server does not support it"),
        ({"logit_bias": {"260": 1}}, 400, "logit_bias", "logit_bias: has token id 260, outside the 260 ids"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias", "logit_bias: has 'a', must have token ids"),
        ({"logit_bias": {"5": 101}}, 400, "logit_bias", "logit_bias: is 101 for token 5, must be from -100 to 100"),
        ({"logit_bias": {"5": None}}, 400, "logit_bias", "logit_bias: is None for token 5, must be from -100"),
        ({"logit_bias": [5]}, 400, "logit_bias", "logit_bias: is [5], must be an object"),
        ({"presence_penalty": -2.5}, 400, "presence_penalty", "presence_penalty: is -2.5, must be from -2 to 2"),
        ({"best_of": 1, "n": 2}, 400, "best_of", "best_of: is 1, must be at least 2"),
        ({"best_of": 3, "stream": True}, 400, "best_of", "best_of: is 3, but only whole texts can be ranked"),
        ({"best_of": 300}, 400, "best_of", "best_of: makes 300 texts of the prompts, more than the 260"),
        ({"frequency_penalty": 3}, 400, "frequency_penalty", "frequency_penalty: is 3.0, must be from -2 to 2"),
        ({"temprature": 1}, 400, "temprature", "temprature: is not a field of this request, did you mean temperature?"),
    ],
)
def test_wrong_requests(server, fields, status, param, message):
    found, _, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a", **fields})
    assert found == status, answer
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"


def test_fields_without_effect_are_accepted(server):
    neutral = {
        "suffix": None,
        "best_of": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
    }
    assert complete(server, **neutral)["choices"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "body: is not JSON"),
        (b"[]", {}, 400, "body: must be a JSON object"),
        (b"\xff", {}, 400, "body: is not JSON"),
        (b'{"model": "wave", "prompt": "a", "top_p": NaN}', {}, 400, "body: is not JSON: NaN"),
        (b"[" * 100_000, {}, 400, "body: is not JSON"),
        (b"x" * (4 * 2**20 + 1), {}, 413, "body: has more than 4194304 bytes"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type: is 'text/plain', must be application/json"),
    ],
)
def test_wrong_bodies(server, body, headers, status, message):
    found, _, answer = ask(server, COMPLETIONS, body, headers=headers)
    assert found == status
    assert answer["error"]["message"].startswith(message)


def test_wrong_paths_and_hosts(server):
    status, _, answer = ask(server, "/v1/chat")
    assert (status, answer["error"]["message"]) == (404, "/v1/chat: there is no such path")
    status, _, answer = ask(server, COMPLETIONS)
    assert (status, answer["error"]["message"]) == (405, "/v1/completions: GET is not allowed here")
    for host in ("evil.example", "127.0.0.1.evil.example", "[::1", "", "2130706433", "128.0.0.1", "::1"):
        status, _, answer = ask(server, "/v1/models", headers={"Host": host})
        assert (status, answer["error"]["message"].partition(":")[0]) == (400, "Host"), host
    for host in ("localhost", "127.0.0.1:80", "127.0.0.2", "127.0.1.1:1", "[::1]:8000", "LOCALHOST:1"):
        assert ask(server, "/v1/models", headers={"Host": host})[0] == 200
    assert ask(server, "/health")[2] == {"status": "ok"}


def test_an_answer_is_json(server):
    """Also with tokens that are no text."""
    answer = complete(server, temperature=2, seed=1, max_tokens=50, logprobs=10)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
