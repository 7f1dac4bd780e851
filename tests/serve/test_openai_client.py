"""The openai package as a client."""

import pytest

from tests.serve.conftest import ANSWER

openai = pytest.importorskip("openai", reason="needs the openai package")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == ["wave", "gravity"]
    assert client.models.retrieve("gravity").owned_by == "psann_jax"


def test_a_completion(client):
    same = {"model": "wave", "prompt": ["a wave", "stone"], "n": 2, "max_tokens": 20, "seed": 4, "logprobs": 3}
    answer = client.completions.create(**same, temperature=0.9, top_p=0.9, extra_body={"top_k": 40})
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 7 + 6
    for choice in answer.choices:
        assert choice.finish_reason in ("length", "stop")
        n = len(choice.logprobs.tokens)
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset) == n
        assert all(
            token in top for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True)
        )


def test_a_stream(client):
    same = {"model": "wave", "prompt": "a wave", "max_tokens": 30, "seed": 4}
    whole = client.completions.create(**same)
    pieces = list(client.completions.create(**same, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage == whole.usage


def test_errors(client):
    with pytest.raises(openai.NotFoundError, match="model: 'none' is not served"):
        client.completions.create(model="none", prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="wave", prompt="a", max_tokens=100)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_a_stream_that_the_client_closes(client):
    with client.completions.create(model="wave", prompt="a", max_tokens=60, n=8, stream=True) as stream:
        next(iter(stream))
    assert client.completions.create(model="wave", prompt="a").choices


def test_a_chat(chat_server):
    same = {"model": "talk", "messages": [{"role": "user", "content": "sun"}], "temperature": 0, "max_tokens": 30}
    with openai.OpenAI(base_url=f"{chat_server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(**same, logprobs=True, top_logprobs=2, stop=["!"])
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
        assert "".join(one.token for one in choice.logprobs.content) == ANSWER
        assert [len(one.top_logprobs) for one in choice.logprobs.content] == [2] * len(ANSWER)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *pieces, last = client.chat.completions.create(**same, **options)
        assert "".join(piece.choices[0].delta.content for piece in pieces) == ANSWER
        assert (pieces[0].choices[0].delta.role, pieces[-1].choices[0].finish_reason) == ("assistant", "stop")
        assert last.usage == answer.usage
        with pytest.raises(openai.BadRequestError, match="wave was not trained on messages"):
            client.chat.completions.create(**{**same, "model": "wave"})


def test_the_scores_of_a_prompt(client):
    answer = client.completions.create(model="wave", prompt="a wave", max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("a wave", "length", 0)
    assert choice.logprobs.tokens == ["<bos>", *"a wave"]
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
