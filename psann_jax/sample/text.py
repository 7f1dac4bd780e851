"""Text from prompts: encoding, stop strings, and text that is certain as it comes."""

import itertools
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from psann_jax.config import require
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.sample.generation import Generation, Overflow, Row
from psann_jax.sample.next_token import Sampling
from psann_jax.sample.sampler import SEGMENT, Sampler
from psann_jax.utils.errors import UserError

_REPLACEMENT = "\ufffd"
_MOST_BYTES_PENDING = 3  # of a UTF-8 character that is not complete
_STREAMED_SECONDS = 0.05  # between pieces of text that are shown as they come

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """What came of one prompt.

    Attributes:
      prompt: as given.
      text: what follows it, up to the stop string or the end of the text.
      tokens: ids produced; with a stop string, up to the one that completes it.
      logprobs: of these tokens, see `Row`.
      finish: "eos", "stop", "length" or "context", see `Row`.
    """

    prompt: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str


@dataclass
class Speed:
    """How long the calls of a `TextSampler` have taken.

    Attributes:
      tokens: produced, of all rows.
      first_s: seconds until the first token of each batch, compilation included where there was any.
      later_tokens: those after the first of every row.
      later_s: seconds that these took.
    """

    tokens: int = 0
    first_s: float = 0.0
    later_tokens: int = 0
    later_s: float = 0.0


@dataclass
class TextSampler:
    """A sampler with the tokenizer of its network.

    Attributes:
      sampler: the network.
      tokenizer: the one it was trained with.
      speed: of all that was completed so far.
    """

    sampler: Sampler
    tokenizer: Tokenizer
    speed: Speed = field(default_factory=Speed)

    def complete(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        seed: int = 0,
        num_samples: int = 1,
        overflow: Overflow = "stop",
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
        on_text: OnText | None = None,
    ) -> Iterator[Completion]:
        """Continues texts; gives the completions as each batch of them is finished.

        A prompt is read as the beginning of a text: after bos and without eos; an empty one is bos alone. The k-th
        continuation of a prompt depends on the prompt, the settings, the seed and k, not on the other prompts.

        Args:
          prompts: texts.
          sampling: how tokens are chosen; None: the defaults of `Sampling`.
          max_new_tokens: at most so many for each.
          stop: strings that end a text where they first occur in it, without them.
          seed: of all randomness, below 2**32.
          num_samples: continuations of each prompt.
          overflow: what happens at the end of the model's context, see `Generation`.
          max_prompt_tokens: a longer prompt, bos included, loses its beginning; None: it is an error.
          batch_size: rows that are produced at once.
          on_text: is called with a completion's index and its next piece of text, as soon as no later token can change
            the piece.

        Returns:
          An iterator over num_samples completions for each prompt, in order.

        Raises:
          UserError: a setting cannot be used, or a prompt is too long.
        """
        for text in stop:
            require(text != "", "stop", "has an empty string, which would stop at once")
        least = {"num_samples": num_samples, "batch_size": batch_size, "max_prompt_tokens": max_prompt_tokens}
        for name, value in least.items():
            require(value is None or value >= 1, name, f"is {value}, must be at least 1")
        texts = [prompt for prompt in prompts for _ in range(num_samples)]
        ids = [row[-(max_prompt_tokens or len(row)) :] for row in self._encode(texts)]
        streams = _streams(ids)

        def batch(start: int) -> list[Completion]:
            rows = slice(start, start + batch_size)
            began = time.perf_counter()
            generation = Generation(
                self.sampler,
                ids[rows],
                sampling or Sampling(),
                max_new_tokens=max_new_tokens,
                seed=seed,
                streams=streams[rows],
                overflow=overflow,
            )
            readers = [
                _Reader(self.tokenizer, row, stop, _bound(on_text, start + i)) for i, row in enumerate(generation.rows)
            ]
            self._run(generation, readers, began, streamed=on_text is not None)
            return [reader.completion(text) for reader, text in zip(readers, texts[rows], strict=True)]

        batches = map(batch, range(0, len(texts), batch_size))
        return itertools.chain.from_iterable(batches)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"prompt: is not a text: {error}") from error
        return [[self.tokenizer.bos_id, *ids] for ids in self.tokenizer.encode_batch(texts)]

    def _run(self, generation: Generation, readers: Sequence["_Reader"], began: float, streamed: bool) -> None:
        """Advances to the end; where text is shown as it comes, in steps that take about _STREAMED_SECONDS."""
        _advance(generation, readers, steps=1)
        first = last = time.perf_counter()
        steps = 2 if streamed else SEGMENT
        while not generation.finished:
            _advance(generation, readers, steps)
            seconds, last = time.perf_counter() - last, time.perf_counter()
            if seconds < _STREAMED_SECONDS:
                steps = min(2 * steps, SEGMENT)
        tokens = sum(len(row.tokens) for row in generation.rows)
        self.speed.tokens += tokens
        self.speed.first_s += first - began
        self.speed.later_tokens += tokens - len(generation.rows)
        self.speed.later_s += last - first


def _advance(generation: Generation, readers: Sequence["_Reader"], steps: int) -> None:
    generation.advance(steps)
    for i, reader in enumerate(readers):
        stopped = reader.read()
        if stopped is not None:
            generation.stop(i, stopped)


class _Reader:
    """Turns a row's ids into text that will not change any more."""

    def __init__(self, tokenizer: Tokenizer, row: Row, stop: Sequence[str], on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._row, self._stop, self._on_text = tokenizer, row, stop, on_text
        # Decoded together with the prompt: some tokenizers drop the space before the first word of what they decode.
        self._prompt_text = tokenizer.decode(row.prompt)
        self._n_read = 0
        self._shown = 0
        self.text = ""

    def read(self) -> int | None:
        """Takes in the row's new tokens.

        Returns:
          If a stop string has come, how many tokens it took to complete it; else None.
        """
        before, self._n_read = self._n_read, len(self._row.tokens)
        if self._n_read == before:
            return None
        stopped, text = None, self._decode(self._n_read)
        if self._first_stop(text) is None:
            certain = len(text) if self._row.finish else self._certain(text)
        else:
            # Token by token, so that the result does not depend on how many tokens come at once.
            texts = ((n, self._decode(n)) for n in range(before + 1, self._n_read + 1))
            stopped, text = next((n, text) for n, text in texts if self._first_stop(text) is not None)
            text = text[: self._first_stop(text)]
            certain = len(text)
        self.text = text
        if certain > self._shown:
            self._on_text(text[self._shown : certain])
            self._shown = certain
        return stopped

    def completion(self, prompt: str) -> Completion:
        """What the finished row has come to."""
        row = self._row
        return Completion(prompt, self.text, row.tokens, row.logprobs, row.finish or "")

    def _decode(self, n_tokens: int) -> str:
        everything = self._tokenizer.decode([*self._row.prompt, *self._row.tokens[:n_tokens]])
        return everything[len(self._prompt_text) :]

    def _first_stop(self, text: str) -> int | None:
        return min((at for s in self._stop if (at := text.find(s)) >= 0), default=None)

    def _certain(self, text: str) -> int:
        """How much of a text later tokens cannot change: no half character, no beginning of a stop string."""
        n = len(text)
        while n > len(text) - _MOST_BYTES_PENDING and n > 0 and text[n - 1] == _REPLACEMENT:
            n -= 1
        beginnings = (k for s in self._stop for k in range(1, len(s)) if text.endswith(s[:k], 0, n))
        return n - max(beginnings, default=0)


def _bound(on_text: OnText | None, index: int) -> Callable[[str], None]:
    return (lambda piece: None) if on_text is None else (lambda piece: on_text(index, piece))


def _streams(rows: Sequence[Sequence[int]]) -> list[int]:
    """A number for each row that follows from its ids and how many rows before it have the same ids."""
    counts: Counter[tuple[int, ...]] = Counter()
    streams = []
    for ids in rows:
        streams.append(zlib.crc32(np.array([*ids, counts[tuple(ids)]], "<u4").tobytes()))
        counts[tuple(ids)] += 1
    return streams
