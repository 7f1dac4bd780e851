"""Batches of text: `load_text` goes from the settings to `TextData`.

The training batch of a step is a pure function of the seed and the step. A run therefore resumes exactly from the step
alone, on any number of processes.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from psann_jax.config import DataConfig, require
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.cache import cache_root, get_or_make, key_of
from psann_jax.data.corpus import Corpus
from psann_jax.data.downloads import local_file
from psann_jax.data.preparation import Run, prepare, run_here
from psann_jax.data.shards import Prepared, Shard
from psann_jax.data.sources import Source
from psann_jax.data.text_checks import repeat_warnings, unit_warnings, unknown_word_warnings
from psann_jax.data.tokenizer import Tokenizer, check_settings
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.data.valid_text import Batches, ValidText
from psann_jax.data.windows import Element
from psann_jax.utils.checksums import find_damage, write_checksums
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location

_TOKENIZER_FILE = "tokenizer.json"
_MARKS = 2**20  # of tokens that are read at once
_SHORT_DOCUMENTS = 8  # documents of which more than so many fit in a window get a warning


def load_text(
    config: DataConfig, progress: bool = True, run: Run = run_here, tokenizer: Tokenizer | None = None
) -> "TextData":
    """Reads and tokenises the text, or finds it prepared in the cache; trains or loads the tokenizer.

    Processes that share a cache directory may call this at the same time: one does the work, the others wait.

    Args:
      config: the `data` section.
      progress: show progress on stderr.
      run: does the tasks of preparing the text, see `psann_jax.data.workers` and `psann_jax.data.nodes`.
      tokenizer: the one to use; None: that of `config`.

    Raises:
      UserError: a source, the tokenizer or the cache cannot be used, or there is too little text.
    """
    require(not config.stream, "data.stream", "cannot be True here: only training reads a stream; leave it at False")
    check_settings(config.tokenizer)
    root = cache_root(config.cache_dir)
    corpus = Corpus(config, progress)
    if tokenizer is None:
        tokenizer = load_tokenizer(config, corpus.fingerprint, corpus.training_sample, progress)
    else:  # no other size was requested, see `TextData.describe`
        settings = dataclasses.replace(config.tokenizer, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(config, tokenizer=settings)
    prepared = prepare(corpus, tokenizer, root, progress, run)
    return TextData(dataclasses.replace(config, document=corpus.document), tokenizer, prepared, corpus.sources)


def load_tokenizer(
    config: DataConfig, text: Any, sample: Callable[[int], Iterable[str]], progress: bool = True
) -> Tokenizer:
    """Returns the tokenizer that a config names, or one that is trained on a sample of a text and kept in the cache.

    Args:
      config: the `data` section.
      text: identifies the text, JSON-like.
      sample: returns training documents of at most so many bytes; 0: all.
      progress: show progress on stderr.

    Raises:
      UserError: the tokenizer or the cache cannot be used, or the text cannot be read.
    """
    settings = config.tokenizer
    if settings.path:
        return named_tokenizer(config)
    # Without `pattern`, which is of a file, and which older versions did not have.
    names = [name for name in settings.__dataclass_fields__ if name != "pattern"]
    key = key_of(text, [getattr(settings, name) for name in names])

    def make(directory: Path) -> None:
        train_tokenizer(sample(settings.sample_bytes), settings, progress).save(directory / _TOKENIZER_FILE)
        write_checksums(directory)

    made = get_or_make(cache_root(config.cache_dir), f"tokenizer-{key}", make, progress, find_damage)
    return Tokenizer.load(made / _TOKENIZER_FILE)


def named_tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer.path` names; copies it to the cache if it is in a bucket.

    Raises:
      UserError: it or the cache cannot be used.
    """
    path, field = config.tokenizer.path, "data.tokenizer.path"
    if isinstance(given_location(path, field), Path):
        return Tokenizer.load(path, config.tokenizer)
    return Tokenizer.load(local_file(path, cache_root(config.cache_dir), field), config.tokenizer)


class TextData(ValidText):
    """Training and validation batches of a tokenised text.

    A batch is a dict of int32 arrays of shape (B, L + 1): tokens, segment_ids and positions, and scored if only some
    tokens are targets, see `PackedWindows`. Each process gets the rows of its `BatchShard`.

    Attributes:
      tokenizer: the tokenizer of the text.
      train_windows: windows in the order of the text: one sequence per source with `data.weights`, else one in all.
      valid_windows: windows of the validation text.
      document: what one document is, as in `data.document`; "auto" if it differs between the sources.
      n_train_documents, n_valid_documents: number of documents.
      n_train_tokens, n_valid_tokens: number of tokens, including bos and eos.
      n_train_windows, n_valid_windows: number of windows (rows, if `data.pack` is off) of L tokens, in one epoch and in
        the whole validation text.
      bytes_per_token: bytes of UTF-8 per predicted token of the whole validation text.
      tokens_per_row: mean number of tokens, without padding, in a row of a training batch: L in packed windows, and the
        mean number of predicted tokens of a row if `data.pack` is off.
      fingerprint: a hash that changes with the text, its split and the tokenizer.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, prepared: Prepared, sources: Sequence[Source] = ()):
        """Cuts prepared text into windows; `load_text` does everything from the settings on.

        Args:
          config: the `data` section.
          tokenizer: the tokenizer that the text was encoded with.
          prepared: the encoded text.
          sources: those of the training text, for `describe` and `warnings`.

        Raises:
          UserError: the training text of a source is shorter than one window, or has no targets.
        """
        super().__init__(config, tokenizer, prepared.valid, prepared.valid_names, prepared.fingerprint)
        if self.has_scored and not _has_targets(prepared.train):
            raise UserError("data.messages_field: no message of a training document is of the assistant")
        self.document = config.document
        self._prepared, self._sources = prepared, tuple(sources)
        shards = self._train_shards()
        self.train_windows = [self._windows(shard) for shard in shards]
        names = config.sources if config.weights else (", ".join(config.sources),)
        for name, shard, windows in zip(names, shards, self.train_windows, strict=True):
            if not len(windows):
                raise UserError(
                    f"data.max_length: is {config.max_length}, but the training text of {name} has {shard.n_tokens} "
                    f"tokens, fewer than the {config.max_length + 1} of one window"
                )
        self.n_train_documents, self.n_train_tokens = prepared.train.n_documents, prepared.train.n_tokens
        self.n_train_windows = sum(map(len, self.train_windows))
        self.tokens_per_row = self._tokens_per_row()

    def train_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> "grain.DatasetIterator[Element]":
        """Returns the endless batches of start_step, start_step + 1, ..., read ahead by threads.

        Every epoch has all windows in a new random order. With `data.weights`, each source is shuffled and repeated
        separately, and windows are drawn from the sources in proportion to their weights.

        Args:
          seed: seed of the shuffles.
          batch_size: B, rows over all processes.
          start_step: step of the first batch.
          shard: the rows to return.

        Returns:
          An iterator; closing or deleting it stops the threads.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        batches = self._train_dataset(seed, batch_size, shard)
        return self._read_ahead(batches[start_step:])

    def train_batch(self, *, seed: int, batch_size: int, step: int, shard: BatchShard = WHOLE_BATCH) -> Element:
        """Returns the batch of one step, the same as `train_batches` yields."""
        return self._train_dataset(seed, batch_size, shard)[step]

    def _tokens_per_row(self) -> float:
        if self._config.pack:
            return self._config.max_length
        shards = self._train_shards()
        means = [
            (shard.n_tokens - shard.n_documents) / len(windows)
            for shard, windows in zip(shards, self.train_windows, strict=True)
        ]
        return float(np.average(means, weights=self._config.weights or None))

    def describe(self) -> str:
        """Returns a summary of the text, its split and the tokenizer, one ``name  fact`` per line."""
        config, train = self._config, self._prepared.train
        origin = (
            f"split of {config.valid_fraction:.3g}" if not config.valid_sources else ", ".join(config.valid_sources)
        )
        kind = "windows" if config.pack else "rows, one document per row,"
        weights = [f" (weight {weight:g})" for weight in config.weights] or [""] * len(config.sources)
        units = [f"each {source.unit} of {source.name}" for source in self._sources if source.unit]
        return "\n".join(
            (
                f"text        {', '.join(map(operator.add, config.sources, weights))}",
                *([f"documents   {', '.join(units)}"] if units else []),
                *self._describe_targets(),
                f"training    {train.n_documents:,} documents, {train.text_bytes:,} bytes, {train.n_tokens:,} tokens, "
                f"{self.n_train_windows:,} {kind} of {config.max_length}",
                *self._describe_validation(origin),
            )
        )

    def warnings(self, batch_size: int) -> tuple[str, ...]:
        """Returns one line about each property of the text that is probably a mistake, given B rows per update."""
        config, length = self._config, self._config.max_length
        mean = self.n_train_tokens / self.n_train_documents
        lines = {
            f"an update of {batch_size:,} windows is more than an epoch, the training text has "
            f"{self.n_train_windows:,}; lower train.batch_tokens": batch_size > self.n_train_windows,
            f"the validation text has only {self.n_valid_tokens:,} tokens, so its loss says little; raise "
            "data.valid_fraction or set data.valid_sources": self.is_small,
            f"documents have {mean:.0f} tokens on average and cannot see each other, while a window has {length:,}; "
            "choose another data.document, or lower data.max_length": config.pack
            and config.document_mask
            and mean * _SHORT_DOCUMENTS < length,
        }
        found = [line for line, holds in lines.items() if holds]
        shards = (self._prepared.train, self._prepared.valid)
        repeats = repeat_warnings(source.part_names() for source in self._sources)
        return (*found, *repeats, *unit_warnings(self._sources), *unknown_word_warnings(shards, self.tokenizer))

    def _train_shards(self) -> list[Shard]:
        """Returns the shards that are shuffled separately."""
        if not self._config.weights:
            return [self._prepared.train]
        ends = np.cumsum((0, *self._prepared.source_documents))
        return [self._prepared.train.documents(a, b) for a, b in itertools.pairwise(ends)]

    def _train_dataset(self, seed: int, batch_size: int, shard: BatchShard) -> Batches:
        # With the same seed, sources of the same size would be shuffled into the same order.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.train_windows)).tolist()
        parts = [
            grain.MapDataset.source(windows).shuffle(seed=part_seed).repeat()
            for windows, part_seed in zip(self.train_windows, seeds, strict=True)
        ]
        rows = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, self._config.weights)
        return Batches(rows, batch_size, shard)


def _has_targets(shard: Shard) -> bool:
    """Whether any token of a shard that says which are targets is one; reads no more of it than is needed."""
    marks_N = shard.scored_N
    assert marks_N is not None
    return any(np.any(marks_N[start : start + _MARKS]) for start in range(0, len(marks_N), _MARKS))
