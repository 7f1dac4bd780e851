"""Synthetic text from a Markov chain: learnable, with nothing to download."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.loader import TextData

_PROBABILITIES = (0.6, 0.2, 0.15, 0.05)  # of the four possible successors of a token
_VALID_SEED = 2**31  # differs from all training seeds of the checks


@dataclass(frozen=True)
class _Tokenizer:
    """The part of a tokenizer that a task uses."""

    vocab_size: int

    def to_bytes(self) -> bytes:
        return json.dumps({"markov_chain": self.vocab_size}).encode()


class MarkovText:
    """A drop-in replacement for `psann_jax.data.loader.TextData`.

    Each token has four possible successors with probabilities 60, 20, 15 and 5 %, so the next-token loss can fall from
    ln(vocab_size) to 1.06 nats per token. A window contains two documents; the border is random in its middle half. A
    batch is a function of (seed, step), as in training on text.
    """

    has_scored = False  # all tokens are targets

    def __init__(self, vocab_size: int, max_length: int):
        self.tokenizer = _Tokenizer(vocab_size)
        self.fingerprint = f"markov chain of {vocab_size} tokens"
        self._length = max_length + 1
        self.tokens_per_row = max_length
        rng = np.random.default_rng(vocab_size)
        # Without replacement, as equal successors would change the probabilities.
        self._successors_Vx4 = np.stack([rng.choice(vocab_size, 4, replace=False) for _ in range(vocab_size)])

    def as_data(self) -> TextData:
        """Returns self, typed as TextData."""
        return cast(TextData, self)

    def describe(self) -> str:
        """Returns a description for the header of a run."""
        return f"text {self.fingerprint}"

    def warnings(self, batch_size: int) -> tuple[str, ...]:
        """Nothing is worth a warning."""
        del batch_size
        return ()

    def evaluated_bytes(self, max_tokens: int = 0) -> int:
        """A token has no text; this is the length of a window, so that bits per byte are finite."""
        del max_tokens
        return self._length - 1

    def target_parts(self, max_tokens: int = 0) -> None:
        """The loss is not divided into parts."""
        del max_tokens

    def train_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of each batch: tokens, segment_ids and positions, each (B, L + 1) int32."""
        rows, step = shard.rows(batch_size), start_step
        while True:
            batch = self.batch((seed, step), batch_size)
            yield {name: x[rows] for name, x in batch.items()}
            step += 1

    def valid_batches(
        self, *, batch_size: int, max_tokens: int, shard: BatchShard = WHOLE_BATCH
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of a single batch, regardless of max_tokens."""
        del max_tokens
        rows = shard.rows(batch_size)
        batch = self.batch((_VALID_SEED, 0), batch_size)
        yield {name: x[rows] for name, x in batch.items()}

    def batch(self, key: tuple[int, int], batch_size: int) -> dict[str, np.ndarray]:
        """Returns the batch for a key (seed, step)."""
        rng = np.random.default_rng(key)
        shape = (batch_size, self._length)
        cut_Bx1 = rng.integers(self._length // 4, 3 * self._length // 4 + 1, (batch_size, 1))
        choice_BxL = rng.choice(4, size=shape, p=_PROBABILITIES)
        tokens_BxL = rng.integers(0, self.tokenizer.vocab_size, shape)  # those not overwritten below start a document
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
