"""Answers to requests for completions, in the form of OpenAI's API."""

import asyncio
import functools
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from psann_jax.data.tokenizer import Tokenizer
from psann_jax.serve.choice import Choice, Update
from psann_jax.serve.engine import QueueFullError
from psann_jax.serve.errors import ApiError
from psann_jax.serve.requests import CompletionRequest
from psann_jax.serve.served import Served

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
_RETRY_S = 1


@dataclass
class _Text:
    """What has been delivered of one completion."""

    parts: list[str] = field(default_factory=list)
    logprobs: dict[str, list[Any]] | None = None
    finish: str | None = None
    n_tokens: int = 0


class Answer:
    """One request on its way: submits its texts and turns their updates into JSON.

    Made in the event loop's thread; updates arrive from the engine's.
    """

    def __init__(self, request: CompletionRequest, served: Served) -> None:
        """Submits the texts.

        Raises:
          ApiError: the request does not fit the model, or the queue is full.
        """
        loop, self._updates = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Update]]()

        def deliver(index: int, update: Update) -> None:
            loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

        self._request, self._served = request, served
        self._prompts, self._choices = served.choices(request, deliver)
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"step-{served.run.step}",
        }
        _submit(served, self._choices)

    def cancel(self) -> None:
        """Ends the texts, because the client has gone; finished ones stay as they are."""
        self._served.engine.cancel(self._choices)

    async def whole(self) -> dict[str, Any]:
        """Waits for all texts and returns the answer.

        Raises:
          ApiError: a text failed.
        """
        texts = [_Text() for _ in self._choices]
        async for index, update in self._arriving():
            text = texts[index]
            piece = self._choice(index, update, is_first=not text.parts)
            text.parts.append(piece["text"])
            text.logprobs = _joined(text.logprobs, piece["logprobs"])
            text.finish, text.n_tokens = piece["finish_reason"], update.n_tokens
        choices = [
            {"index": i, "text": "".join(text.parts), "logprobs": text.logprobs, "finish_reason": text.finish}
            for i, text in enumerate(texts)
        ]
        return {**self._head, "choices": choices, "usage": self._usage(sum(text.n_tokens for text in texts))}

    async def pieces(self) -> AsyncIterator[str]:
        """Yields the events of a stream; an error is the last of them."""
        n_tokens, begun = [0] * len(self._choices), set()
        usage = {"usage": None} if self._request.include_usage else {}
        try:
            async for index, update in self._arriving():
                choice = self._choice(index, update, is_first=index not in begun)
                begun.add(index)
                n_tokens[index] = update.n_tokens
                yield _event({**self._head, "choices": [choice], **usage})
            if usage:
                yield _event({**self._head, "choices": [], "usage": self._usage(sum(n_tokens))})
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())
        finally:
            self.cancel()

    async def _arriving(self) -> AsyncIterator[tuple[int, Update]]:
        """Yields the updates until all texts are finished."""
        n_unfinished = len(self._choices)
        while n_unfinished:
            index, update = await self._updates.get()
            if update.finish == "error":
                self.cancel()
                raise ApiError(503 if "ending" in update.error else 500, update.error)
            n_unfinished -= update.finish is not None
            yield index, update

    def _choice(self, index: int, update: Update, *, is_first: bool) -> dict[str, Any]:
        echoed = self._echoed(index)
        return {
            "index": index,
            "text": echoed + update.text if is_first else update.text,
            "logprobs": None if self._request.logprobs is None else self._logprobs(update),
            "finish_reason": _REASONS.get(update.finish or ""),
        }

    def _echoed(self, index: int) -> str:
        if not self._request.echo:
            return ""
        prompt = self._request.prompts[index // self._request.n]
        return prompt if isinstance(prompt, str) else self._served.tokenizer.decode(prompt)

    def _logprobs(self, update: Update) -> dict[str, list[Any]]:
        name = functools.partial(token_name, self._served.tokenizer)
        tops: list[dict[str, float]] = [{} for _ in update.tokens]
        for found, top, chosen in zip(tops, update.top, zip(update.tokens, update.logprobs, strict=True), strict=True):
            for i, value in (*top, chosen):  # of tokens with the same name, the most probable one
                found.setdefault(name(i), value)
        return {
            "tokens": [name(i) for i in update.tokens],
            "token_logprobs": update.logprobs,
            "top_logprobs": tops,
            "text_offset": update.offsets,
        }

    def _usage(self, n_generated: int) -> dict[str, int]:
        n_prompt = sum(map(len, self._prompts))
        return {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated}


def token_name(tokenizer: Tokenizer, i: int) -> str:
    """Returns the text of a token; if its bytes are no text, "bytes:" and each of them as OpenAI writes them."""
    piece = tokenizer.piece(i)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _submit(served: Served, choices: list[Choice]) -> None:
    try:
        served.engine.submit(choices)
    except QueueFullError as error:
        message = f"{served.name}: the queue is full, with {served.engine.max_waiting} places; try again later"
        raise ApiError(429, message, code="queue_full", retry_after=_RETRY_S) from error


def _joined(before: dict[str, list[Any]] | None, new: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    if before is None or new is None:
        return new
    return {name: list(itertools.chain(values, new[name])) for name, values in before.items()}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
