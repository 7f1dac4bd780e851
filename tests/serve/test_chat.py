"""Chats: the template of the training, where a message ends, log-probabilities, streams, and wrong requests."""

import pytest

from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.sample.slots import SlotRow
from psann_jax.serve.choice import Choice
from tests.serve.conftest import ANSWER
from tests.support.serving import ask, events

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "sun"}]
GREEDY = {"temperature": 0, "max_tokens": 40}
BYTES = byte_tokenizer()


def chat(server, **fields):
    status, _, answer = ask(server, CHAT, {"model": "talk", "messages": USER, **fields})
    assert status == 200, answer
    return answer


def contents(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_the_answer_is_a_message(chat_server):
    answer = chat(chat_server, **GREEDY)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "stop")
    assert (answer["object"], answer["model"], answer["id"][:9]) == ("chat.completion", "talk", "chatcmpl-")
    prompt = "<|user|>\nsun\n<|assistant|>\n"
    assert answer["usage"]["prompt_tokens"] == 1 + len(prompt)


def test_the_prompt_is_the_dialogue_in_the_template_of_the_training(chat_server):
    """A completion of the same text goes on in the same way, past the end of the message."""
    messages = [*USER, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "moon"}]
    text = f"<|user|>\nsun\n<|assistant|>\n{ANSWER}\n<|user|>\nmoon\n<|assistant|>\n"
    body = {"model": "talk", "prompt": text, "temperature": 1, "seed": 3, "max_tokens": 8}
    _, _, completion = ask(chat_server, "/v1/completions", body)
    answer = chat(chat_server, messages=messages, seed=3, max_tokens=8)
    assert answer["usage"]["prompt_tokens"] == completion["usage"]["prompt_tokens"]
    (plain,), (message,) = ([choice["text"] for choice in completion["choices"]], contents(answer))
    assert plain.startswith(message)
    assert plain.removeprefix(message) in ("", "\n"), "the same tokens"


def test_a_content_may_have_parts(chat_server):
    parts = [{"type": "text", "text": "s"}, {"type": "text", "text": "un"}]
    answers = [chat(chat_server, messages=[{"role": "user", "content": c}], seed=1) for c in ("sun", parts)]
    assert contents(answers[0]) == contents(answers[1])
    assert answers[0]["usage"] == answers[1]["usage"]


def test_without_a_limit_an_answer_may_fill_the_context(chat_server):
    answer = chat(chat_server, temperature=50, seed=2)
    assert answer["choices"][0]["finish_reason"] == "stop" or answer["usage"]["total_tokens"] == 96
    assert chat(chat_server, max_completion_tokens=3, temperature=0)["usage"]["completion_tokens"] == 3
    assert contents(chat(chat_server, max_completion_tokens=3, temperature=0)) == [ANSWER[:3]]


def test_stop_strings_n_and_seed(chat_server):
    assert contents(chat(chat_server, **GREEDY, stop=" s")) == ["yes"]
    same = {"n": 3, "seed": 5, "temperature": 3, "max_tokens": 12}
    first = contents(chat(chat_server, **same))
    assert len(set(first)) > 1
    assert contents(chat(chat_server, **same)) == first


def test_logprobs_are_those_of_the_tokens_of_the_message(chat_server):
    for fields in ({"top_logprobs": 3}, {}):
        (choice,) = chat(chat_server, **GREEDY, logprobs=True, **fields)["choices"]
        found = choice["logprobs"]["content"]
        assert "".join(one["token"] for one in found) == ANSWER
        assert bytes(byte for one in found for byte in one["bytes"]).decode() == ANSWER
        assert all(one["logprob"] > -1 for one in found)
        tops = [one["top_logprobs"] for one in found]
        assert all(len(top) == fields.get("top_logprobs", 0) for top in tops)
        for one, top in zip(found, tops, strict=True):
            assert not top or top[0] == {name: one[name] for name in ("token", "logprob", "bytes")}, "it is greedy"


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_stream_has_the_same_message(chat_server, logprobs):
    same = {"n": 2, "seed": 4, "temperature": 1.5, "max_tokens": 30, "logprobs": logprobs}
    whole = chat(chat_server, **same)
    *pieces, last = events(chat(chat_server, **same, stream=True, stream_options={"include_usage": True}))
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for index, choice in enumerate(whole["choices"]):
        own = [c for piece in pieces for c in piece["choices"] if c["index"] == index]
        assert [c["delta"].get("role") for c in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(c["delta"]["content"] for c in own) == choice["message"]["content"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        if logprobs:
            assert [one for c in own for one in c["logprobs"]["content"]] == choice["logprobs"]["content"]


# --- the end of a message -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("written", "finish", "text", "is_cut"),
    [
        ("a\nb\n$", "eos", "a\nb", True),
        ("a\n\n$", "eos", "a\n", True),
        ("a$", "eos", "a", True),
        ("$", "eos", "", True),
        ("\n$", "eos", "", True),
        ("a\n<|user|>\nb", "stop", "a", True),
        ("a\n<|us", "length", "a\n<|us", False),
        ("a\n", "length", "a\n", False),
        ("a é\n$", "eos", "a é", True),
    ],
)
def test_where_a_message_ends(written, finish, text, is_cut, size):
    """However many tokens arrive at once; `$` is eos."""
    ids = [BYTES.eos_id if c == "$" else i for c in written for i in BYTES.encode(c)]
    updates = []
    row = SlotRow([BYTES.bos_id], limit=len(ids))
    choice = Choice(row, BYTES, ("\n<|user|>\n", "\n<|assistant|>\n"), True, "\n", updates.append)
    while row.finish is None:
        new = ids[len(row.tokens) :][:size]
        row.tokens += new
        row.logprobs += [-1.0] * len(new)
        if new[-1] == BYTES.eos_id:
            row.finish = "eos"
        elif len(row.tokens) == len(ids):
            row.finish = "length"
        choice.read()
    assert "".join(update.text for update in updates) == text
    assert (updates[-1].finish, [update.finish for update in updates[:-1]]) == (finish, [None] * (len(updates) - 1))
    tokens = [i for update in updates for i in update.tokens]
    assert b"".join(map(BYTES.piece, tokens)).decode() == text
    assert is_cut or len(tokens) == len(ids)


# --- wrong requests -------------------------------------------------------------------------------------


def test_a_run_without_a_template_is_refused(chat_server):
    status, _, answer = ask(chat_server, CHAT, {"model": "wave", "messages": USER})
    message = "wave was not trained on messages and has no template for them; use /v1/completions, or fine-tune it with"
    assert (status, answer["error"]["param"]) == (400, "model")
    assert answer["error"]["message"] == f"model: {message} data.messages_field"
    _, _, models = ask(chat_server, "/v1/models")
    assert [card["has_chat"] for card in models["data"]] == [True, False]


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt"}, 404, "model", "model: 'gpt' is not served; there are talk, wave"),
        ({"messages": None}, 400, "messages", "messages: is missing"),
        ({"messages": []}, 400, "messages", "messages: is an empty list; give at least one message"),
        ({"messages": "hi"}, 400, "messages", "messages: is 'hi', must be a list"),
        ({"messages": ["hi"]}, 400, "messages", "messages: message 1 is 'hi', must be an object with role and content"),
        (
            {"messages": [*USER, {"role": "user"}]},
            400,
            "messages",
            "messages: the content of message 2 is None, must be",
        ),
        ({"messages": [{"content": "a"}]}, 400, "messages", "messages: the role of message 1 is None, must be a word"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages",
            "messages: the content",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            400,
            "messages",
            "messages: message 1 has 'name'",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "messages: cannot be encoded"),
        ({"messages": [{"role": "user", "content": "a" * 90}]}, 400, "max_tokens", "max_tokens: 1 and a prompt of 115"),
        ({"prompt": "a"}, 400, "prompt", "prompt: is not a field of this request"),
        ({"logprobs": 3}, 400, "logprobs", "logprobs: is 3, must be true or false"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "top_logprobs: has no effect without logprobs"),
        ({"logprobs": True, "top_logprobs": 11}, 400, "top_logprobs", "top_logprobs: is 11, must be from 0 to 10"),
        ({"max_tokens": 0}, 400, "max_tokens", "max_tokens: is 0, must be at least 1"),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            400,
            "max_tokens",
            "max_tokens: is 1, but max_completion_tokens",
        ),
        ({"tools": [{"type": "function"}]}, 400, "tools", "tools: is [{'type': 'function'}], but this server does not"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "response_format: is {'type': 'json_"),
        ({"presence_penalty": "a"}, 400, "presence_penalty", "presence_penalty: is 'a', must be a number"),
        ({"message": []}, 400, "message", "message: is not a field of this request, did you mean messages?"),
    ],
)
def test_wrong_requests(chat_server, fields, status, param, message):
    found, _, answer = ask(chat_server, CHAT, {"model": "talk", "messages": USER, **fields})
    assert found == status, answer
    assert answer["error"]["message"].startswith(message)
    assert (answer["error"]["param"], answer["error"]["type"]) == (param, "invalid_request_error")


def test_fields_without_effect_are_accepted(chat_server):
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "user": "me", "top_logprobs": 0}
    assert contents(chat(chat_server, **GREEDY, **neutral)) == [ANSWER]
