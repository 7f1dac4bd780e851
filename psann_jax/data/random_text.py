"""Random tokens in place of text, for measurements that must not depend on a text."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from psann_jax.config import Config, DataConfig, text_data, text_model

_N_BATCHES = 4  # created once and then cycled, so that no time of a step goes into creating them
_MEAN_DOCUMENT = 256  # tokens


@dataclass(frozen=True)
class Vocabulary:
    """All that a task needs of a tokenizer before it reads text."""

    vocab_size: int


class RandomText:
    """Has the interface of `psann_jax.data.loader.TextData` for training batches, with random content.

    Ids follow Zipf's law, p(rank) ~ 1 / rank, as words do. Packed windows contain documents of geometrically
    distributed length, 256 tokens on average, each with its own segment id if there is a document mask.

    Attributes:
      tokenizer: has the vocabulary size that the config asks for, or that its tokenizer would have.
      has_scored: whether batches say which tokens are targets; here all are.
    """

    has_scored = False

    def __init__(self, config: Config):
        """Determines the vocabulary size; loads the tokenizer only if the config names a file and no size."""
        self._data = text_data(config)
        self.tokenizer = Vocabulary(text_model(config).vocab_size or _vocab_size(self._data))

    def train_batches(self, *, seed: int, batch_size: int, **_: int) -> Iterator[dict[str, np.ndarray]]:
        """Cycles through a few batches: tokens, segment_ids and positions, each (B, L + 1) int32."""
        rng = np.random.default_rng(seed)
        return itertools.cycle([self._batch(rng, batch_size) for _ in range(_N_BATCHES)])

    def _batch(self, rng: np.random.Generator, batch_size: int) -> dict[str, np.ndarray]:
        shape = (batch_size, self._data.max_length + 1)
        tokens = (self.tokenizer.vocab_size ** rng.random(shape)).astype(np.int32) - 1
        index = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        if not self._data.pack:
            inside = index < rng.geometric(1 / _MEAN_DOCUMENT, (batch_size, 1)) + 1
            return {"tokens": tokens * inside, "segment_ids": inside.astype(np.int32), "positions": index * inside}
        starts = index == 0
        if self._data.document_mask:
            starts |= rng.random(shape) < 1 / _MEAN_DOCUMENT
        segment_ids = np.cumsum(starts, axis=1, dtype=np.int32)
        positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}


def _vocab_size(data: DataConfig) -> int:
    settings = data.tokenizer
    if settings.is_trained:
        return settings.vocab_size
    from psann_jax.data.loader import named_tokenizer
    from psann_jax.data.tokenizer import byte_tokenizer

    return (named_tokenizer(data) if settings.path else byte_tokenizer()).vocab_size


def random_prompts(config: Config, seed: int, batch_size: int, length: int) -> list[list[int]]:
    """Returns token ids as in `RandomText`, (batch_size, length)."""
    batches = RandomText(config).train_batches(seed=seed, batch_size=batch_size)
    rows: list[list[int]] = next(batches)["tokens"][:, :length].tolist()
    return rows
