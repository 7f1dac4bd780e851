"""Text that is made up: a Markov chain, so that there is something to learn and nothing to download."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from psann_jax.data.loader import TextData

_SHARES = (0.6, 0.2, 0.15, 0.05)  # of the four tokens that can follow a token
_VALID_SEED = 2**31  # no seed of training in these checks


@dataclass(frozen=True)
class _Tokenizer:
    """All that a task asks of a tokenizer."""

    vocab_size: int

    def to_bytes(self) -> bytes:
        return json.dumps({"markov_chain": self.vocab_size}).encode()


class MarkovText:
    """Stands where `psann_jax.data.loader.TextData` does.

    Each token is followed by one of four, with shares of 60, 20, 15 and 5 %, so the next-token loss can fall from
    ln(vocab_size) to 1.06 nats. A window holds two documents, cut at random in its middle half. A batch is a
    function of (seed, step), as in training on text.
    """

    bytes_per_token = 1.0

    def __init__(self, vocab_size: int, max_length: int):
        """Args:
        vocab_size: number of tokens.
        max_length: of a window, as in DataConfig.
        """
        self.tokenizer = _Tokenizer(vocab_size)
        self.fingerprint = f"markov chain of {vocab_size} tokens"
        self._length = max_length + 1
        rng = np.random.default_rng(vocab_size)
        # Four different ones each: otherwise the known shares would not be those of the successors.
        self._successors_Vx4 = np.stack([rng.choice(vocab_size, 4, replace=False) for _ in range(vocab_size)])

    def as_data(self) -> TextData:
        """The same for a type checker."""
        return cast(TextData, self)

    def describe(self) -> str:
        """For the header of a run."""
        return f"text {self.fingerprint}"

    def train_batches(
        self, *, seed: int, batch_size: int, start_step: int, process_index: int, process_count: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """A process's rows of the batches from a step on: tokens, segments and positions, each (B, L + 1) int32."""
        rows, step = batch_size // process_count, start_step
        while True:
            batch = self.batch((seed, step), batch_size)
            yield {name: x[process_index * rows : (process_index + 1) * rows] for name, x in batch.items()}
            step += 1

    def valid_batches(
        self, *, batch_size: int, max_tokens: int, process_index: int, process_count: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """A process's rows of one batch, however many tokens are asked for."""
        del max_tokens
        rows = batch_size // process_count
        batch = self.batch((_VALID_SEED, 0), batch_size)
        yield {name: x[process_index * rows : (process_index + 1) * rows] for name, x in batch.items()}

    def batch(self, key: tuple[int, int], batch_size: int) -> dict[str, np.ndarray]:
        """The batch of a (seed, step)."""
        rng = np.random.default_rng(key)
        shape = (batch_size, self._length)
        cut_Bx1 = rng.integers(self._length // 4, 3 * self._length // 4 + 1, (batch_size, 1))
        choice_BxL = rng.choice(4, size=shape, p=_SHARES)
        tokens_BxL = rng.integers(0, self.tokenizer.vocab_size, shape)  # what is not overwritten begins a document
        for i in range(1, self._length):
            follows_B = self._successors_Vx4[tokens_BxL[:, i - 1], choice_BxL[:, i]]
            tokens_BxL[:, i] = np.where(cut_Bx1[:, 0] == i, tokens_BxL[:, i], follows_B)
        index_BxL = np.broadcast_to(np.arange(self._length), shape)
        second_BxL = index_BxL >= cut_Bx1
        batch = {
            "tokens": tokens_BxL,
            "segment_ids": 1 + second_BxL,
            "positions": index_BxL - second_BxL * cut_Bx1,
        }
        return {name: x.astype(np.int32) for name, x in batch.items()}
