"""Answers to requests for chats, in the form of OpenAI's API."""

import itertools
from typing import Any

from psann_jax.data.records import ASSISTANT
from psann_jax.serve.answer import Answer, Pieces, reason, token_name
from psann_jax.serve.choice import Update


class ChatCompletion(Answer):
    """The assistant's next message in a dialogue."""

    ID, WHOLE, PIECE = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _piece(self, index: int, update: Update, *, is_first: bool) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {**({"role": ASSISTANT} if is_first else {}), "content": update.text},
            "logprobs": None if self._request.logprobs is None else {"content": self._logprobs(update)},
            "finish_reason": reason(update),
        }

    def _joined(self, pieces: Pieces) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None:
            logprobs = {"content": [*itertools.chain.from_iterable(piece["logprobs"]["content"] for piece in pieces)]}
        content = "".join(piece["delta"]["content"] for piece in pieces)
        message = {"role": ASSISTANT, "content": content, "refusal": None}
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": pieces[-1]["finish_reason"]}

    def _logprobs(self, update: Update) -> list[dict[str, Any]]:
        scored = zip(update.tokens, update.logprobs, update.top, strict=True)
        return [
            {**self._token(i, value), "top_logprobs": [self._token(*other) for other in top]}
            for i, value, top in scored
        ]

    def _token(self, i: int, logprob: float) -> dict[str, Any]:
        tokenizer = self._served.tokenizer
        return {"token": token_name(tokenizer, i), "logprob": logprob, "bytes": list(tokenizer.piece(i))}
