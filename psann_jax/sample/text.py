"""Text generated from prompts: encoding, stop strings, streaming."""

import itertools
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from psann_jax.data.tokenizer import Tokenizer
from psann_jax.sample.generation import Generation, Row, check_prompt
from psann_jax.sample.sampler import MAX_STEPS, Sampler
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.utils.errors import UserError

_REPLACEMENT = "\ufffd"
_MAX_PENDING_BYTES = 3  # of an incomplete UTF-8 character
_STREAM_INTERVAL_S = 0.05  # between pieces of streamed text

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt.

    Attributes:
      prompt: as given.
      text: the generated text, up to the stop string if there is one.
      tokens: the generated ids, up to the token that completes the stop string if there is one.
      logprobs: the tokens' log-probabilities, see `Row`.
      finish: "eos", "stop", "length" or "context", see `Row`.
    """

    prompt: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str


@dataclass
class Speed:
    """Accumulated timings of a `TextSampler`.

    Attributes:
      tokens: tokens generated in all rows.
      first_s: seconds up to the first token of each batch, including any compilation.
      later_tokens: tokens generated after the first one of every row.
      later_s: seconds spent on these.
    """

    tokens: int = 0
    first_s: float = 0.0
    later_tokens: int = 0
    later_s: float = 0.0


@dataclass
class TextSampler:
    """Generates text with a sampler and its network's tokenizer.

    Attributes:
      sampler: the compiled network.
      tokenizer: the tokenizer it was trained with.
      speed: timings of all calls so far.
    """

    sampler: Sampler
    tokenizer: Tokenizer
    speed: Speed = field(default_factory=Speed)

    def complete(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        options: GenerationOptions | None = None,
        *,
        on_text: OnText | None = None,
    ) -> Iterator[Completion]:
        """Continues prompts and yields the completions batch by batch.

        A prompt is read as the beginning of a document: bos is put before it and no eos after it. The k-th continuation
        of a prompt depends on the prompt, the settings, the seed and k, not on the other prompts.

        Args:
          prompts: texts; "" generates from bos alone.
          sampling: how tokens are chosen; None uses the defaults of `Sampling`.
          options: lengths, stop strings, seed and so on; None uses the defaults of `GenerationOptions`.
          on_text: called with the index of a completion and the next piece of its text, as soon as later tokens cannot
            change the piece.

        Returns:
          An iterator over options.num_samples completions for each prompt, in order.

        Raises:
          UserError: a setting is invalid, or a prompt is too long for overflow="stop".
        """
        sampling, options = sampling or Sampling(), options or GenerationOptions()
        sampling.check()
        options.check()
        texts = [prompt for prompt in prompts for _ in range(options.num_samples)]
        ids = [row[-(options.max_prompt_tokens or len(row)) :] for row in self._encode(texts)]
        # Now, because an error in a later batch would lose the texts of those before.
        for number, row in enumerate(ids[:: options.num_samples], 1):
            check_prompt(row, self.sampler, options.overflow, f"prompt {number}" if len(prompts) > 1 else "prompt")
        streams = streams_of(ids)

        def run_batch(start: int) -> list[Completion]:
            rows = slice(start, start + options.batch_size)
            start_time = time.perf_counter()
            generation = Generation(
                self.sampler,
                ids[rows],
                sampling,
                max_new_tokens=options.max_new_tokens,
                seed=options.seed,
                streams=streams[rows],
                overflow=options.overflow,
            )
            readers = [
                Reader(self.tokenizer, row, options.stop, _callback_of(on_text, start + i))
                for i, row in enumerate(generation.rows)
            ]
            self._run(generation, readers, start_time, streamed=on_text is not None)
            return [reader.completion(text) for reader, text in zip(readers, texts[rows], strict=True)]

        return itertools.chain.from_iterable(map(run_batch, range(0, len(texts), options.batch_size)))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"prompt: is not valid Unicode text: {error}") from error
        return [[self.tokenizer.bos_id, *ids] for ids in self.tokenizer.encode_batch(texts)]

    def _run(self, generation: Generation, readers: Sequence["Reader"], start_time: float, streamed: bool) -> None:
        """Runs a generation to its end; streamed text is read about every _STREAM_INTERVAL_S seconds."""
        _advance(generation, readers, steps=1)
        first_time = last_time = time.perf_counter()
        steps = 2 if streamed else MAX_STEPS
        while not generation.finished:
            _advance(generation, readers, steps)
            seconds, last_time = time.perf_counter() - last_time, time.perf_counter()
            if seconds < _STREAM_INTERVAL_S:
                steps = min(2 * steps, MAX_STEPS)
        tokens = sum(len(row.tokens) for row in generation.rows)
        self.speed.tokens += tokens
        self.speed.first_s += first_time - start_time
        self.speed.later_tokens += tokens - len(generation.rows)
        self.speed.later_s += last_time - first_time


def _advance(generation: Generation, readers: Sequence["Reader"], steps: int) -> None:
    generation.advance(steps)
    for i, reader in enumerate(readers):
        stopped = reader.read()
        if stopped is not None:
            generation.stop(i, stopped)


class Reader:
    """Decodes a row's ids into text that later tokens cannot change."""

    def __init__(self, tokenizer: Tokenizer, row: Row, stop: Sequence[str], on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._row, self._stop, self._on_text = tokenizer, row, stop, on_text
        # Ids are decoded together with the prompt, because some tokenizers drop the space before the first word.
        self._prompt_text = tokenizer.decode(row.prompt)
        self._n_read = 0
        self._shown = 0
        self.text = ""

    def read(self) -> int | None:
        """Decodes the row's new tokens.

        Returns:
          The number of tokens that complete the first stop string, or None if there is none.
        """
        before, self._n_read = self._n_read, len(self._row.tokens)
        if self._n_read == before:
            return None
        stopped, text = None, self._decode(self._n_read)
        if self._stop and (self._first_stop(text) is not None or not self._tokenizer.extends):
            # Token by token, so that the result does not depend on how many tokens arrive at once.
            for n in range(before + 1, self._n_read + 1):
                part = self._decode(n)
                at = self._first_stop(part if self._ends_at(n) else part[: _n_complete(part)])
                if at is not None:
                    stopped, text = n, part[:at]
                    break
        certain = len(text) if stopped is not None or self._ends_at(self._n_read) else self._certain(text)
        self.text = text
        if certain > self._shown:
            self._on_text(text[self._shown : certain])
            self._shown = certain
        return stopped

    def end(self, index: int) -> int:
        """Returns the number of characters up to the end of a generated token, with one that it begins."""
        return len(self._decode(index + 1))

    def start(self, index: int) -> int:
        """Returns the number of characters before a generated token; a token may continue the last one of them."""
        return _start(self._decode(index), self._tokenizer.piece(self._row.tokens[index]))

    def completion(self, prompt: str) -> Completion:
        """Returns the finished row as a Completion."""
        row = self._row
        return Completion(prompt, self.text, row.tokens, row.logprobs, row.finish or "")

    def _decode(self, n_tokens: int) -> str:
        whole_text = self._tokenizer.decode([*self._row.prompt, *self._row.tokens[:n_tokens]])
        return whole_text[len(self._prompt_text) :]

    def _ends_at(self, n_tokens: int) -> bool:
        """Whether the row is finished and has this number of tokens."""
        return self._row.finish is not None and n_tokens == len(self._row.tokens)

    def _first_stop(self, text: str) -> int | None:
        return min((at for s in self._stop if (at := text.find(s)) >= 0), default=None)

    def _certain(self, text: str) -> int:
        """Length of the text that later tokens cannot change, before the possible beginning of a stop string."""
        if not self._tokenizer.extends:
            return 0
        n = _n_complete(text)
        beginnings = (k for s in self._stop for k in range(1, len(s)) if text.endswith(s[:k], 0, n))
        return n - max(beginnings, default=0)


def _n_complete(text: str) -> int:
    """Length of the text before a character that may be incomplete."""
    n = len(text)
    while n > len(text) - _MAX_PENDING_BYTES and n > 0 and text[n - 1] == _REPLACEMENT:
        n -= 1
    return n


def _start(before: str, piece: bytes) -> int:
    """Number of characters before a token, given the decoded text before it; one that it continues does not count."""
    continues = 0x80 <= piece[0] < 0xC0 if piece else False  # the first byte of UTF-8
    return _n_complete(before) if continues else len(before)


def token_starts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Returns for each token the number of characters before it in the decoded text.

    A token that continues a character begins where the character does.
    """
    special = tokenizer.special_ids
    pieces = [b"" if i in special else tokenizer.piece(i) for i in ids]
    whole = b"".join(pieces)
    if whole.decode(errors="replace").encode() == whole == tokenizer.decode(ids).encode():
        # For each byte and for the end, the number of characters that have begun there.
        begun = [*itertools.accumulate(int(byte & 0xC0 != 0x80) for byte in whole)]
        begun.append(begun[-1] + 1 if begun else 1)
        starts = itertools.accumulate(map(len, pieces), initial=0)
        return [begun[start] - 1 for start, _ in zip(starts, ids, strict=False)]
    # Slower, but right for tokenizers that drop or change spaces where they join tokens, and for incomplete characters.
    slow = (_start(tokenizer.decode(ids[:i]), piece) for i, piece in enumerate(pieces))
    return [*itertools.accumulate(slow, max)]


def _callback_of(on_text: OnText | None, index: int) -> Callable[[str], None]:
    return (lambda piece: None) if on_text is None else (lambda piece: on_text(index, piece))


def streams_of(rows: Sequence[Sequence[int]]) -> list[int]:
    """Derives a number for each row from its ids and the number of earlier rows with the same ids."""
    counts: Counter[tuple[int, ...]] = Counter()
    streams = []
    for ids in rows:
        streams.append(zlib.crc32(np.array([*ids, counts[tuple(ids)]], "<u4").tobytes()))
        counts[tuple(ids)] += 1
    return streams
