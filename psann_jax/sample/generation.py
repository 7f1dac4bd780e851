"""Token ids generated from prompts: the host side of the compiled decoding loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from psann_jax.config import require
from psann_jax.sample.sampler import MAX_STEPS, Sampler, State, power_of_two
from psann_jax.sample.settings import GenerationOptions, Overflow, Sampling
from psann_jax.utils.errors import UserError

_MIN_PREFILL, _MAX_PREFILL = 16, 256  # prompt tokens processed at once
_MIN_CAPACITY = 64


@dataclass
class Row:
    """One text, finished or in progress.

    Attributes:
      prompt: its token ids.
      tokens: ids generated so far, including the final end-of-text id if the model ended the text.
      logprobs: the model's log-probability of each generated token, before penalty, temperature and filters.
      finish: why the text ended: "eos" (the end-of-text id), "stop" (the caller ended it), "length" (max_new_tokens) or
        "context" (the model's context is full); None while it is in progress.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def extend(self, tokens: list[int], logprobs: list[float], sampler: Sampler, limit: int) -> None:
        """Adds new tokens and ends the row if they complete it.

        Raises:
          UserError: the network's logits are not finite.
        """
        if sampler.vocab_size in tokens:
            raise not_finite()
        self.tokens += tokens
        self.logprobs += logprobs
        if tokens[-1] == sampler.eos_id:
            self.finish = "eos"
        elif len(self.tokens) == limit:
            self.finish = "length"

    def stop(self, n_tokens: int) -> None:
        """Ends the row at the caller's request and drops all but its first `n_tokens` generated tokens."""
        self.finish = "stop"
        del self.tokens[n_tokens:], self.logprobs[n_tokens:]


def not_finite() -> UserError:
    """Returns the error for logits that are not finite."""
    return UserError("the network's logits are not finite: damaged parameters or too low a precision")


class Generation:
    """A batch of texts generated together, each from its own prompt to its own end.

    A row depends on its prompt, the settings, the seed and its stream, but not on the other rows, their number or
    their order (apart from rounding in matrix products of different sizes).

    The number of rows is padded to a power of two, and prompts and caches to a few lengths, so that the sampler does
    not recompile for every call.

    Attributes:
      rows: the texts, updated by `advance`.
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
        overflow: Overflow = GenerationOptions.overflow,
    ) -> None:
        """Reads the prompts; `advance` then generates tokens.

        Args:
          sampler: the network.
          prompts: token ids, at least one per prompt.
          sampling: how tokens are chosen.
          max_new_tokens: most tokens generated per row.
          seed: of all random numbers, below 2**32.
          streams: a number below 2**32 per row; with the seed and the position it determines the row's random numbers.
            The default is 0, 1, ...
          overflow: what happens when a row fills the sampler's max_length. "slide": its last max_length // 2 tokens
            become the new context and generation continues; a prompt that is too long is truncated the same way.
            "stop": the row ends with the reason "context".

        Raises:
          UserError: a prompt is empty, too long or has ids outside the vocabulary, or a setting is invalid.
        """
        sampling.check()
        GenerationOptions(max_new_tokens=max_new_tokens, seed=seed, overflow=overflow).check()
        require(len(prompts) > 0, "prompt", "is missing, give at least one")
        for prompt in prompts:
            check_prompt(prompt, sampler, overflow)
        self.rows = [Row([int(i) for i in prompt]) for prompt in prompts]
        self._sampler, self._limit, self._overflow = sampler, max_new_tokens, overflow
        self._batch = sampler.rows_for(len(prompts))
        longest = max(map(len, prompts))
        self._capacity = min(_size_class(longest + max_new_tokens, _MIN_CAPACITY), sampler.max_length)
        self._control = {
            "capacity": np.int32(self._capacity),
            "limit": np.int32(min(max_new_tokens, np.iinfo(np.int32).max)),
            "seed": np.uint32(seed),
            "streams": self._padded(range(len(prompts)) if streams is None else streams, np.uint32),
            "sampling": sampling.scalars(),
        }
        self._cached = [0] * len(prompts)  # tokens of each row in the cache
        self._state = self._initial_state()
        self._prefill(dict(enumerate(map(self._window, self.rows))))

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(row.finish is not None for row in self.rows)

    def advance(self, steps: int = MAX_STEPS) -> None:
        """Generates up to `steps` tokens per row, at most MAX_STEPS.

        Raises:
          UserError: the network's logits are not finite.
        """
        active = [row.finish is None for row in self.rows]
        if not any(active):
            return
        full = [i for i, row in enumerate(self.rows) if active[i] and self._cached[i] == self._capacity]
        if full:
            self._prefill({i: self._window(self.rows[i]) for i in full})
        control = {**self._control, "active": self._padded(active, np.bool_)}
        self._state, out = self._sampler.decode(self._state, control, steps)
        for i, (tokens_T, logprobs_T) in enumerate(zip(out["tokens"], out["logprobs"], strict=True)):
            n = int((tokens_T >= 0).sum())
            if n:
                self._append(i, tokens_T[:n].tolist(), logprobs_T[:n].tolist())

    def stop(self, row: int, n_tokens: int) -> None:
        """Ends a row at the caller's request and drops all but its first `n_tokens` generated tokens."""
        self.rows[row].stop(n_tokens)

    def _append(self, i: int, tokens: list[int], logprobs: list[float]) -> None:
        """Adds new tokens to a row and ends it if they complete it."""
        row = self.rows[i]
        row.extend(tokens, logprobs, self._sampler, self._limit)
        self._cached[i] += len(tokens)
        if row.finish is None and self._cached[i] == self._capacity and self._overflow == "stop":
            row.finish = "context"

    def _initial_state(self) -> State:
        seen_BxV = np.zeros((self._batch, self._sampler.vocab_size), np.bool_)
        for i, row in enumerate(self.rows):
            seen_BxV[i, row.prompt] = True
        last_B = self._padded([row.prompt[-1] for row in self.rows], np.int32)
        return self._sampler.init_state(last_B, seen_BxV, self._capacity)

    def _window(self, row: Row) -> list[int]:
        """The tokens that serve as the row's context."""
        ids = [*row.prompt, *row.tokens]
        return ids if len(ids) <= self._capacity else ids[-(self._capacity // 2) :]

    def _prefill(self, windows: Mapping[int, Sequence[int]]) -> None:
        """Refills the caches of these rows with all tokens of their windows but the last."""
        cached = {i: window[:-1] for i, window in windows.items()}
        longest = max(map(len, cached.values()))
        chunk = min(power_of_two(max(longest, _MIN_PREFILL)), _MAX_PREFILL)
        reset_B = self._padded([i in cached for i in range(len(self.rows))], np.bool_)
        for start in range(0, max(longest, 1), chunk):
            tokens_BxL, counts_B = np.zeros((self._batch, chunk), np.int32), np.zeros(self._batch, np.int32)
            for i, tokens in cached.items():
                part = tokens[start : start + chunk]
                tokens_BxL[i, : len(part)], counts_B[i] = part, len(part)
            self._state = self._sampler.prefill(self._state, tokens_BxL, counts_B, reset_B)
            reset_B = np.zeros_like(reset_B)
        for i, tokens in cached.items():
            self._cached[i] = len(tokens)

    def _padded(self, values: Sequence[Any], dtype: Any) -> np.ndarray:
        padded_B = np.zeros(self._batch, dtype)
        padded_B[: len(values)] = values
        return padded_B


def generate(
    sampler: Sampler, prompts: Sequence[Sequence[int]], sampling: Sampling, *, max_new_tokens: int, **options: Any
) -> list[Row]:
    """Runs a `Generation` with these arguments to the end and returns its rows."""
    generation = Generation(sampler, prompts, sampling, max_new_tokens=max_new_tokens, **options)
    while not generation.finished:
        generation.advance()
    return generation.rows


def check_prompt(prompt: Sequence[int], sampler: Sampler, overflow: Overflow, name: str = "prompt") -> None:
    """Raises ConfigError ``name: problem`` if `Generation` cannot take a prompt, token ids, with these arguments."""
    require(len(prompt) > 0, name, "has no tokens; it must begin with the bos token")
    for i in prompt:
        require(0 <= i < sampler.vocab_size, name, f"has token id {i}, outside the {sampler.vocab_size} ids")
    require(
        overflow == "slide" or len(prompt) <= sampler.max_length,
        name,
        f"has {len(prompt)} tokens, more than the model's context of {sampler.max_length}; "
        "shorten it or set overflow=slide",
    )


def _size_class(n: int, minimum: int) -> int:
    """Rounds n up to `minimum`, a power of two, times 1, 1.5, 2, 3, 4, 6, 8, ..."""
    power = power_of_two(max(n, minimum))
    return power * 3 // 4 if minimum < power and n <= power * 3 // 4 else power
