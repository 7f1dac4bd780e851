"""Rows of token ids from prompts: the host's side of the compiled decoding loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from psann_jax.config import require
from psann_jax.sample.next_token import Sampling
from psann_jax.sample.sampler import SEGMENT, Sampler, State, power_of_two
from psann_jax.utils.errors import UserError

Overflow = Literal["stop", "slide"]

_LEAST_READ, _MOST_READ = 16, 256  # tokens of a prompt that are read at once
_LEAST_CAPACITY = 64


@dataclass
class Row:
    """One text in the making.

    Attributes:
      prompt: its ids.
      tokens: ids produced so far; the end-of-text id is the last one, if it has come.
      logprobs: for each of them its log-probability by the model, before penalty, temperature and filters.
      finish: why it has ended: "eos" (the end-of-text id), "stop" (the caller ended it), "length" (max_new_tokens) or
        "context" (the model's context is full); None while it goes on.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None


class Generation:
    """Rows that are produced together, each from its own prompt to its own end.

    What a row becomes depends on its prompt, the settings, the seed and its stream, not on the other rows, their
    number or their order (but for the rounding of matrix products of other sizes).

    The number of rows is padded to a power of two, prompts and caches to a few lengths, so that the sampler need not
    compile for every call.

    Attributes:
      rows: what there is so far.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        seed: int = 0,
        streams: Sequence[int] | None = None,
        overflow: Overflow = "stop",
    ) -> None:
        """Reads the prompts; `advance` then produces tokens.

        Args:
          sampler: the network.
          prompts: ids, at least one each.
          sampling: how tokens are chosen.
          max_new_tokens: at most so many a row.
          seed: of all randomness, below 2**32.
          streams: for each row a number below 2**32 that decides its random numbers, with the seed and the position;
            None: 0, 1, ...
          overflow: what happens when a row fills the sampler's max_length. "stop": it ends, with the reason
            "context". "slide": its last max_length // 2 tokens are read again as if they were all, and it goes on; a
            prompt that is too long is cut alike.

        Raises:
          UserError: a prompt is empty, too long or has ids outside the vocabulary, or a setting cannot be used.
        """
        sampling.check()
        require(max_new_tokens >= 1, "max_new_tokens", f"is {max_new_tokens}, must be at least 1")
        require(0 <= seed < 2**32, "seed", f"is {seed}, must be at least 0 and below 2**32")
        require(
            overflow in get_args(Overflow),
            "overflow",
            f"is {overflow!r}, must be one of {', '.join(get_args(Overflow))}",
        )
        require(len(prompts) > 0, "prompt", "is missing, give at least one")
        for prompt in prompts:
            _check_prompt(prompt, sampler, overflow)
        self.rows = [Row([int(i) for i in prompt]) for prompt in prompts]
        self._sampler, self._limit, self._overflow = sampler, max_new_tokens, overflow
        self._batch = sampler.rows_for(len(prompts))
        longest = max(map(len, prompts))
        self._capacity = min(_size_class(longest + max_new_tokens, _LEAST_CAPACITY), sampler.max_length)
        self._control = {
            "capacity": np.int32(self._capacity),
            "limit": np.int32(min(max_new_tokens, np.iinfo(np.int32).max)),
            "seed": np.uint32(seed),
            "streams": self._padded(range(len(prompts)) if streams is None else streams, np.uint32),
            "sampling": sampling.scalars(),
        }
        self._cached = [0] * len(prompts)  # tokens of each row in the cache
        self._state = self._initial_state()
        self._read(dict(enumerate(map(self._window, self.rows))))

    @property
    def finished(self) -> bool:
        """Whether no row goes on."""
        return all(row.finish is not None for row in self.rows)

    def advance(self, steps: int = SEGMENT) -> None:
        """Produces up to `steps` tokens a row, at most SEGMENT.

        Raises:
          UserError: the network's logits are not finite.
        """
        live = [row.finish is None for row in self.rows]
        if not any(live):
            return
        full = [i for i, row in enumerate(self.rows) if live[i] and self._cached[i] == self._capacity]
        if full:
            self._read({i: self._window(self.rows[i]) for i in full})
        control = {**self._control, "live": self._padded(live, np.bool_)}
        self._state, out = self._sampler.decode(self._state, control, steps)
        for i, (tokens_T, logprobs_T) in enumerate(zip(out["tokens"], out["logprobs"], strict=True)):
            n = int((tokens_T >= 0).sum())
            if n:
                self._take(i, tokens_T[:n].tolist(), logprobs_T[:n].tolist())

    def stop(self, row: int, n_tokens: int) -> None:
        """Ends a row for a reason of the caller's, after `n_tokens` produced tokens; any later ones are dropped."""
        ended = self.rows[row]
        ended.finish = "stop"
        del ended.tokens[n_tokens:], ended.logprobs[n_tokens:]

    def _take(self, i: int, tokens: list[int], logprobs: list[float]) -> None:
        """Adds what a row has produced, and sees whether that ends it."""
        row = self.rows[i]
        if self._sampler.vocab_size in tokens:
            raise UserError("the network's logits are not finite: damaged parameters, or too narrow a precision")
        row.tokens += tokens
        row.logprobs += logprobs
        self._cached[i] += len(tokens)
        if tokens[-1] == self._sampler.eos_id:
            row.finish = "eos"
        elif len(row.tokens) == self._limit:
            row.finish = "length"
        elif self._cached[i] == self._capacity and self._overflow == "stop":
            row.finish = "context"

    def _initial_state(self) -> State:
        seen_BxV = np.zeros((self._batch, self._sampler.vocab_size), np.bool_)
        for i, row in enumerate(self.rows):
            seen_BxV[i, row.prompt] = True
        last_B = self._padded([row.prompt[-1] for row in self.rows], np.int32)
        return self._sampler.init_state(last_B, seen_BxV, self._capacity)

    def _window(self, row: Row) -> list[int]:
        """The tokens that a row goes on from."""
        everything = [*row.prompt, *row.tokens]
        return everything if len(everything) <= self._capacity else everything[-(self._capacity // 2) :]

    def _read(self, windows: Mapping[int, Sequence[int]]) -> None:
        """Starts rows anew with these tokens, of which the last one stays outside the cache."""
        read = {i: window[:-1] for i, window in windows.items()}
        longest = max(map(len, read.values()))
        chunk = min(power_of_two(max(longest, _LEAST_READ)), _MOST_READ)
        fresh_B = self._padded([i in read for i in range(len(self.rows))], np.bool_)
        for start in range(0, max(longest, 1), chunk):
            tokens_BxL, counts_B = np.zeros((self._batch, chunk), np.int32), np.zeros(self._batch, np.int32)
            for i, tokens in read.items():
                part = tokens[start : start + chunk]
                tokens_BxL[i, : len(part)], counts_B[i] = part, len(part)
            self._state = self._sampler.read(self._state, tokens_BxL, counts_B, fresh_B)
            fresh_B = np.zeros_like(fresh_B)
        for i, tokens in read.items():
            self._cached[i] = len(tokens)

    def _padded(self, values: Sequence[Any], dtype: Any) -> np.ndarray:
        padded_B = np.zeros(self._batch, dtype)
        padded_B[: len(values)] = values
        return padded_B


def generate(
    sampler: Sampler, prompts: Sequence[Sequence[int]], sampling: Sampling, *, max_new_tokens: int, **options: Any
) -> list[Row]:
    """The finished rows of a `Generation` of these arguments."""
    generation = Generation(sampler, prompts, sampling, max_new_tokens=max_new_tokens, **options)
    while not generation.finished:
        generation.advance()
    return generation.rows


def _check_prompt(prompt: Sequence[int], sampler: Sampler, overflow: str) -> None:
    require(len(prompt) > 0, "prompt", "has no tokens; begin it with the bos token")
    for i in prompt:
        require(0 <= i < sampler.vocab_size, "prompt", f"has token id {i}, outside the {sampler.vocab_size} ids")
    require(
        overflow == "slide" or len(prompt) <= sampler.max_length,
        "prompt",
        f"has {len(prompt)} tokens, more than the model's context of {sampler.max_length}; "
        "shorten it, or set overflow=slide",
    )


def _size_class(n: int, least: int) -> int:
    """The least of `least` times 1, 1.5, 2, 3, 4, 6, 8, ... that is not below n; `least` is a power of two."""
    power = power_of_two(max(n, least))
    return power * 3 // 4 if least < power and n <= power * 3 // 4 else power
