"""Random tokens in the place of text, for measurements that must not depend on a text."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from psann_jax.config import Config, DataConfig

_BATCHES = 4  # made beforehand and used in turn, so that making them takes no time of a step
_MEAN_DOCUMENT = 256  # tokens


def with_vocabulary(config: Config) -> Config:
    """The config with the vocabulary size that its tokenizer would have; unchanged if it is not about text."""
    if not isinstance(config.data, DataConfig):
        return config
    settings, size = config.data.tokenizer, config.model.vocab_size
    if not size and (settings.path or settings.kind == "bytes"):
        from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer

        size = (Tokenizer.load(settings.path, settings) if settings.path else byte_tokenizer()).vocab_size
    model = dataclasses.replace(config.model, vocab_size=size or settings.vocab_size)
    return dataclasses.replace(config, model=model)


@dataclass(frozen=True)
class Vocabulary:
    """All that a task asks of a tokenizer before it sees text."""

    vocab_size: int


class RandomText:
    """Stands where `psann_jax.data.loader.TextData` does and gives training batches of the same form.

    Ids follow Zipf's law, p(rank) ~ 1 / rank, as words do. Packed windows hold documents of geometrically
    distributed length, 256 tokens on average, in one segment each if there is a document mask.
    """

    def __init__(self, config: Config):
        """Args: config, with model.vocab_size set."""
        self.tokenizer = Vocabulary(config.model.vocab_size)
        self._config = config

    def train_batches(self, *, seed: int, batch_size: int, **_: int) -> Iterator[dict[str, np.ndarray]]:
        """A few batches again and again: tokens, segments and positions, each (B, L + 1) int32."""
        rng = np.random.default_rng(seed)
        return itertools.cycle([self._batch(rng, batch_size) for _ in range(_BATCHES)])

    def _batch(self, rng: np.random.Generator, batch_size: int) -> dict[str, np.ndarray]:
        data, shape = self._config.data, (batch_size, self._config.data.max_length + 1)
        tokens = (self.tokenizer.vocab_size ** rng.random(shape)).astype(np.int32) - 1
        index = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        if not data.pack:
            inside = index < rng.geometric(1 / _MEAN_DOCUMENT, (batch_size, 1)) + 1
            return {"tokens": tokens * inside, "segment_ids": inside.astype(np.int32), "positions": index * inside}
        starts = index == 0
        if data.document_mask:
            starts |= rng.random(shape) < 1 / _MEAN_DOCUMENT
        segment_ids = np.cumsum(starts, axis=1, dtype=np.int32)
        positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}


def random_prompts(config: Config, seed: int, batch_size: int, length: int) -> list[list[int]]:
    """Token ids as in `RandomText`, (batch_size, length)."""
    batches = RandomText(config).train_batches(seed=seed, batch_size=batch_size)
    rows: list[list[int]] = next(batches)["tokens"][:, :length].tolist()
    return rows
