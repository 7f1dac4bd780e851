"""Damaged and hostile requests: each is answered with an error in OpenAI's form, and the server goes on."""

import contextlib
import http.client
import json
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.serve.test_load import until
from tests.support.serving import ask

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VALID = {
    COMPLETIONS: {"model": "talk", "prompt": "a", "max_tokens": 2},
    CHAT: {"model": "talk", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}
FIELDS = [
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "best_of", "stop", "stream", "seed"),
    *("stream_options", "logprobs", "top_logprobs", "echo", "temperature", "top_p", "top_k", "min_p", "tools", "user"),
    *("repetition_penalty", "suffix", "logit_bias", "presence_penalty", "frequency_penalty", "response_format"),
]
SURROGATES = st.text(st.characters(categories=["Cs", "Ll", "Zs", "Cc"]), max_size=5)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**18, -(10**400), 2**31, 2**63, 1e308, 5e-324, -0.0, float("inf"), float("nan")]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), SURROGATES, st.just("talk"))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "include_usage", "5"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def sent(server, path, content):
    """Sends a body of bytes; returns the status and the answer, which has OpenAI's form if it is an error."""
    status, headers, answer = ask(server, path, content)
    assert status == 200 or 400 <= status < 500, answer
    if status != 200:
        assert answer.keys() == {"error"}
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert len(answer["error"]["message"]) < 5000
        assert "\n" not in answer["error"]["message"]
    elif headers["Content-Type"].startswith("text/event-stream"):
        assert answer.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer
    return status, answer


def still_answers(server):
    for path, body in VALID.items():
        assert ask(server, path, body)[0] == 200


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.one_of(st.sampled_from(FIELDS), SURROGATES), VALUES, min_size=1, max_size=3))
@example(changes={"\ud800": 1})
@example(changes={"\n" * 100: 1})
@example(changes={"stop": ["\ud800"]})
@example(changes={"model": "\ud800"})
@example(changes={"prompt": ["\ud800", "a"]})
@example(changes={"prompt": [10**400]})
@example(changes={"prompt": [[], [1]]})
@example(changes={"messages": [{"role": "\ud800", "content": "a"}]})
@example(changes={"messages": [{"role": "user", "content": []}]})
@example(changes={"temperature": float("inf")})
@example(changes={"temperature": 10**400, "max_tokens": 10**400})
@example(changes={"min_p": 1e-320, "repetition_penalty": 1e-320, "top_p": 1e-320, "temperature": 1e-320})
@example(changes={"stream": True, "n": 4, "max_tokens": 0, "echo": True, "logprobs": 0})
@example(changes={"user": {"a": [float("nan")]}})
def test_any_fields(chat_server, path, changes):
    sent(chat_server, path, json.dumps({**VALID[path], **changes}).encode())


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(min_size=1, max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
@example(content=b'{"model": "talk", "prompt": 1e999}')
@example(content=b'{"model": "talk", "prompt": "a", "temperature": 1e999}')
@example(content=b'{"model": "talk", "prompt": "a", "seed": ' + b"9" * 5000 + b"}")
@example(content=b'{"a": ' * 100_000)
@example(content=b'{"' + b"a" * 1_000_000 + b'": 1}')
def test_any_body(chat_server, path, content):
    assert sent(chat_server, path, content)[0] != 200


def test_large_bodies(chat_server):
    for path, field in ((COMPLETIONS, "prompt"), (CHAT, "stop")):
        body = json.dumps({**VALID[path], field: "a" * 10_000_000}).encode()
        status, answer = sent(chat_server, path, body)
        assert (status, answer["error"]["message"]) == (413, "body: has more than 4194304 bytes")
    prompts = ("a" * 4_000_000, ["a"] * 500_000, [5] * 1_000_000, [[5]] * 500_000)
    for prompt in prompts:
        body = json.dumps({**VALID[COMPLETIONS], "prompt": prompt}, separators=(",", ":")).encode()
        status, answer = sent(chat_server, COMPLETIONS, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    messages = [{"role": "user", "content": "a"}] * 50_000
    assert sent(chat_server, CHAT, json.dumps({**VALID[CHAT], "messages": messages}).encode())[0] == 400
    still_answers(chat_server)


def test_a_body_without_an_end_is_not_read_for_ever(chat_server):
    """Nor kept in memory."""
    with contextlib.closing(raw(chat_server)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(chunk)
            pytest.fail("200 MiB were read")
    still_answers(chat_server)


def raw(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize(
    "content", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nA", b"\x16\x03\x01"]
)
def test_what_is_no_http(chat_server, content):
    with contextlib.closing(raw(chat_server)) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(10_000)
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    still_answers(chat_server)


@pytest.mark.parametrize(
    "path", ["/v1/models/%ed%a0%80", "/%00", "/v1/models/" + "a" * 10_000, "//", "/v1/../v1/models/a"]
)
def test_wrong_paths(chat_server, path):
    status, _, answer = ask(chat_server, path)
    assert status == 404
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", VALID)
def test_a_client_that_goes_away_in_the_middle_of_a_stream(chat_server, path):
    engine = chat_server.models["talk"].engine
    body = json.dumps({**VALID[path], "max_tokens": 60, "stream": True, "n": 6, "temperature": 50})
    for _ in range(3):
        connection = http.client.HTTPConnection(*chat_server.url.removeprefix("http://").split(":"), timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            assert connection.getresponse().read(20).startswith(b"data: {")
    until(lambda: engine.is_idle)
    assert len(engine.slots.free) == len(engine.slots.rows)
    still_answers(chat_server)
