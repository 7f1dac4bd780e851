"""A request on its way: texts in, JSON out. The forms of the answers are in `completion` and `chat`."""

import abc
import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, ClassVar

from psann_jax.data.tokenizer import Tokenizer
from psann_jax.serve.choice import Choice, Update
from psann_jax.serve.engine import QueueFullError
from psann_jax.serve.errors import ApiError
from psann_jax.serve.requests import TextRequest
from psann_jax.serve.served import Served

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
_RETRY_S = 1

Pieces = list[dict[str, Any]]


class Answer(abc.ABC):
    """Submits the texts of a request and turns their updates into JSON.

    Made in the event loop's thread; updates arrive from the engine's.

    Attributes:
      ID: begins the identity of an answer.
      WHOLE, PIECE: what OpenAI calls a whole answer, and an event of a stream.
    """

    ID: ClassVar[str]
    WHOLE: ClassVar[str]
    PIECE: ClassVar[str]

    def __init__(self, request: TextRequest, prompts: Sequence[list[int]], served: Served) -> None:
        """Submits the texts.

        Args:
          request: for this model.
          prompts: token ids of its prompts, from `Served.encode`.
          served: the model.

        Raises:
          ApiError: the request does not fit the model, or the queue is full.
        """
        loop, self._updates = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Update]]()

        def deliver(index: int, update: Update) -> None:
            loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

        self._request, self._prompts, self._served = request, prompts, served
        self._choices = served.choices(request, prompts, deliver)
        self._head = {
            "id": f"{self.ID}-{secrets.token_hex(12)}",
            "object": self.WHOLE,
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
        pieces: list[Pieces] = [[] for _ in self._choices]
        async for index, update in self._arriving():
            pieces[index].append(self._piece(index, update, is_first=not pieces[index]))
        choices = [self._joined(pieces[index]) for index in self._chosen()]
        usage = self._usage(sum(len(choice.row.tokens) for choice in self._choices))
        return {**self._head, "choices": [{**c, "index": i} for i, c in enumerate(choices)], "usage": usage}

    async def pieces(self) -> AsyncIterator[str]:
        """Yields the events of a stream; an error is the last of them."""
        n_tokens, begun = [0] * len(self._choices), set()
        head, usage = {**self._head, "object": self.PIECE}, {"usage": None} if self._request.include_usage else {}
        try:
            async for index, update in self._arriving():
                choice = self._piece(index, update, is_first=index not in begun)
                begun.add(index)
                n_tokens[index] = update.n_tokens
                yield _event({**head, "choices": [choice], **usage})
            if usage:
                yield _event({**head, "choices": [], "usage": self._usage(sum(n_tokens))})
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

    def _chosen(self) -> Iterable[int]:
        """The texts of the answer: of those of each prompt the n with the highest mean log-probability, best first."""
        every, size = range(len(self._choices)), self._request.best_of
        if size is None:
            return every
        ranked = (sorted(every[i : i + size], key=self._mean_logprob, reverse=True) for i in every[::size])
        return itertools.chain.from_iterable(group[: self._request.n] for group in ranked)

    def _mean_logprob(self, index: int) -> float:
        logprobs = self._choices[index].row.logprobs
        return sum(logprobs) / max(len(logprobs), 1)

    @abc.abstractmethod
    def _piece(self, index: int, update: Update, *, is_first: bool) -> dict[str, Any]:
        """Returns an update of a text as a choice of an event."""

    @abc.abstractmethod
    def _joined(self, pieces: Pieces) -> dict[str, Any]:
        """Returns the choice of a whole answer, without its index."""

    def _usage(self, n_generated: int) -> dict[str, int]:
        n_prompt = sum(map(len, self._prompts))
        return {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated}


def reason(update: Update) -> str | None:
    """Returns OpenAI's word for why a text has ended, None while it is in progress."""
    return _REASONS.get(update.finish or "")


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


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
