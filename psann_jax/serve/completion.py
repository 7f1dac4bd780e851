"""Answers to requests for completions, in the form of OpenAI's API."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from psann_jax.sample.text import token_starts
from psann_jax.serve.answer import Answer, Pieces, reason, token_name
from psann_jax.serve.choice import Update

_Scored = tuple[int, float | None, Sequence[tuple[int, float]] | None, int]  # id, log-probability, alternatives, offset


class Completion(Answer):
    """Continuations of prompts."""

    ID, WHOLE, PIECE = "cmpl", "text_completion", "text_completion"

    def _piece(self, index: int, update: Update, *, is_first: bool) -> dict[str, Any]:
        echoed = self._echoed[index // self._request.n_generated] if self._request.echo else ""
        return {
            "index": index,
            "text": echoed + update.text if is_first else update.text,
            "logprobs": None if self._request.logprobs is None else self._logprobs(index, update, echoed, is_first),
            "finish_reason": reason(update),
        }

    def _joined(self, pieces: Pieces) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None:
            found = [piece["logprobs"] for piece in pieces]
            logprobs = {name: list(itertools.chain.from_iterable(one[name] for one in found)) for name in found[0]}
        text = "".join(piece["text"] for piece in pieces)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": pieces[-1]["finish_reason"]}

    @functools.cached_property
    def _echoed(self) -> list[str]:
        """The texts of the prompts."""
        decode = self._served.tokenizer.decode
        return [prompt if isinstance(prompt, str) else decode(prompt) for prompt in self._request.prompts]

    def _logprobs(self, index: int, update: Update, echoed: str, is_first: bool) -> dict[str, list[Any]]:
        offsets = (len(echoed) + offset for offset in update.offsets)
        scored: list[_Scored] = [*zip(update.tokens, update.logprobs, update.top, offsets, strict=True)]
        if is_first and self._request.echo:
            row = self._choices[index].row
            starts = token_starts(self._served.tokenizer, row.prompt)
            # Nothing comes before the first token, so the model has no probability for it.
            logprobs, tops = [None, *row.prompt_logprobs], [None, *row.prompt_top]
            scored = [*zip(row.prompt, logprobs, tops, starts, strict=True), *scored]
        name = functools.partial(token_name, self._served.tokenizer)
        return {
            "tokens": [name(i) for i, *_ in scored],
            "token_logprobs": [logprob for _, logprob, *_ in scored],
            "top_logprobs": [self._top(i, logprob, top) for i, logprob, top, _ in scored],
            "text_offset": [offset for *_, offset in scored],
        }

    def _top(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]] | None
    ) -> dict[str, float] | None:
        if logprob is None or top is None:
            return None
        found: dict[str, float] = {}
        for i, value in (*top, (token, logprob)):  # of tokens with the same name, the most probable one
            found.setdefault(token_name(self._served.tokenizer, i), value)
        return found
