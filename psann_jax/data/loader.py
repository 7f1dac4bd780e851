"""Batches of text: `load_text` goes from the settings to `TextData`.

The training batch of a step is a pure function of the seed and the step. A run therefore resumes exactly from the step
alone, on any number of processes.
"""

import copy
import dataclasses
import itertools
import operator
from collections.abc import Sequence
from pathlib import Path

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
from psann_jax.data.target_parts import TextParts
from psann_jax.data.text_checks import unit_warnings, unknown_word_warnings
from psann_jax.data.tokenizer import Tokenizer, check_settings
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.data.windows import DocumentRows, Element, PackedWindows, Windows, padding_row
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location

_TOKENIZER_FILE = "tokenizer.json"
# Validation texts below either size, and documents of which more than so many fit in a window, get a warning.
_FEW_WINDOWS, _FEW_TOKENS, _SHORT_DOCUMENTS = 2, 1000, 8


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
    check_settings(config.tokenizer)
    root = cache_root(config.cache_dir)
    corpus = Corpus(config, progress)
    if tokenizer is None:
        tokenizer = _tokenizer(corpus, config, root, progress)
    else:  # no other size was requested, see `TextData.describe`
        settings = dataclasses.replace(config.tokenizer, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(config, tokenizer=settings)
    prepared = prepare(corpus, tokenizer, root, progress, run)
    return TextData(dataclasses.replace(config, document=corpus.document), tokenizer, prepared, corpus.sources)


def _tokenizer(corpus: Corpus, config: DataConfig, root: Path, progress: bool) -> Tokenizer:
    settings = config.tokenizer
    if settings.path:
        is_path = isinstance(given_location(settings.path, "data.tokenizer.path"), Path)
        path = settings.path if is_path else local_file(settings.path, root, "data.tokenizer.path")
        return Tokenizer.load(path, settings)
    # Without `pattern`, which is of a file, and which older versions did not have.
    names = [name for name in settings.__dataclass_fields__ if name != "pattern"]
    key = key_of(corpus.fingerprint, [getattr(settings, name) for name in names])

    def make(directory: Path) -> None:
        sample = corpus.training_sample(settings.sample_bytes)
        train_tokenizer(sample, settings, progress).save(directory / _TOKENIZER_FILE)

    return Tokenizer.load(get_or_make(root, f"tokenizer-{key}", make, progress) / _TOKENIZER_FILE)


class TextData:
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
          UserError: the training text of a source is shorter than one window.
        """
        self.tokenizer = tokenizer
        self.fingerprint = prepared.fingerprint
        self.document = config.document
        self._config, self._prepared, self._sources = config, prepared, tuple(sources)
        self.valid_windows = self._windows(prepared.valid, keep_last=True)
        shards = self._train_shards()
        self.train_windows = [self._windows(shard) for shard in shards]
        names = config.sources if config.weights else (", ".join(config.sources),)
        for name, shard, windows in zip(names, shards, self.train_windows, strict=True):
            if not len(windows):
                raise UserError(
                    f"data.max_length: is {config.max_length}, but the training text of {name} has {shard.n_tokens} "
                    f"tokens, fewer than the {config.max_length + 1} of one window"
                )
        if self.has_scored and not np.any(prepared.valid.scored_N):
            raise UserError("data.messages_field: no message of a validation document is of the assistant")
        self.n_train_documents, self.n_valid_documents = prepared.train.n_documents, prepared.valid.n_documents
        self.n_train_tokens, self.n_valid_tokens = prepared.train.n_tokens, prepared.valid.n_tokens
        self.n_train_windows, self.n_valid_windows = sum(map(len, self.train_windows)), len(self.valid_windows)
        # Every token is predicted once, except the first one of all or, with a document mask, of each document.
        unpredicted = prepared.valid.n_documents if config.document_mask else 1
        self.bytes_per_token = prepared.valid.text_bytes / (self.n_valid_tokens - unpredicted)
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

    def valid_batches(
        self, *, batch_size: int, max_tokens: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> "grain.DatasetIterator[Element]":
        """Returns the batches of the validation text in order, the same number of batches in every process.

        The last batch is filled up with padding rows, whose segment ids are 0.

        Args:
          batch_size: B, rows over all processes.
          max_tokens: use only the first windows, which have as many targets, at least one window; 0: the whole text.
          shard: the rows to return.

        Raises:
          UserError: batch_size cannot be divided over the processes.
        """
        n = self._n_evaluated(max_tokens)
        padding = padding_row(self.valid_windows[0], self.tokenizer.pad_id)
        rows = grain.MapDataset.source(_Padded(self.valid_windows, n, batch_size, padding))
        return self._read_ahead(_Batches(rows, batch_size, shard))

    @property
    def has_scored(self) -> bool:
        """Whether only some tokens are targets; batches then have the array `scored`."""
        return self._prepared.valid.scored_N is not None

    def _n_evaluated(self, max_tokens: int) -> int:
        """The number of windows that `valid_batches` yields."""
        n = self.n_valid_windows
        return min(n, max(self.valid_windows.n_within(max_tokens), 1)) if max_tokens else n

    def target_parts(self, max_tokens: int = 0) -> TextParts:
        """Returns the position and the source of the targets that `valid_batches` yields with the same max_tokens."""
        offsets, ends = self._prepared.valid.offsets, [0]
        for _, n_documents in self._prepared.valid_names:
            ends.append(ends[-1] + n_documents)
        names = [name for name, _ in self._prepared.valid_names]
        sizes = [int(offsets[b] - offsets[a]) for a, b in itertools.pairwise(ends)]
        n = self._n_evaluated(max_tokens)
        sources = list(zip(names, sizes, strict=True))
        return TextParts(self.valid_windows, n, self._config.max_length, sources)

    def with_stride(self, stride: int) -> "TextData":
        """Returns the same data with validation windows that start `stride` tokens apart, see `PackedWindows`.

        Raises:
          UserError: the stride is not 1 to L.
        """
        length = self._config.max_length
        require(1 <= stride <= length, "stride", f"is {stride}, must be 1 to data.max_length={length}")
        other = copy.copy(self)
        other.valid_windows = self._windows(self._prepared.valid, keep_last=True, stride=stride)
        other.n_valid_windows = len(other.valid_windows)
        return other

    def evaluated_bytes(self, max_tokens: int = 0) -> int:
        """Returns the bytes of UTF-8 of the text that `valid_batches` yields with the same max_tokens, of its targets.

        Those of a part of the text follow from the bytes that its tokens stand for. Their sum is scaled to the bytes of
        the whole text, from which it differs if the tokenizer changes the text.
        """
        valid = self._prepared.valid
        n = self._n_evaluated(max_tokens)
        sizes_V = self.tokenizer.sizes()
        end = self.valid_windows.end(n)
        if valid.scored_N is not None:
            return int(sizes_V[valid.tokens_N[:end]] @ (valid.scored_N[:end] > 0))
        if n == self.n_valid_windows:
            return valid.text_bytes
        counts = [np.bincount(tokens, minlength=len(sizes_V)) for tokens in (valid.tokens_N[:end], valid.tokens_N)]
        part, whole = (int(count @ sizes_V) for count in counts)
        return round(valid.text_bytes * part / whole) if whole else 0

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
        config, train, valid = self._config, self._prepared.train, self._prepared.valid
        requested = config.tokenizer.vocab_size
        smaller = not config.tokenizer.path and self.tokenizer.kind != "bytes" and self.tokenizer.vocab_size < requested
        note = f" ({requested:,} requested, but the text yields no more)" if smaller else ""
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
                *([f"targets     {self._targets()}"] if self.has_scored else []),
                f"training    {train.n_documents:,} documents, {train.text_bytes:,} bytes, {train.n_tokens:,} tokens, "
                f"{self.n_train_windows:,} {kind} of {config.max_length}",
                f"validation  {valid.n_documents:,} documents, {valid.text_bytes:,} bytes, {valid.n_tokens:,} tokens "
                f"({origin})",
                f"tokenizer   {self.tokenizer.kind}, vocabulary {self.tokenizer.vocab_size:,}{note}, "
                f"{self.bytes_per_token:.2f} bytes per token",
            )
        )

    def _targets(self) -> str:
        field = self._config.completion_field
        return f"field {field} of records" if field else f"the assistant's messages in {self._config.messages_field}"

    def warnings(self, batch_size: int) -> tuple[str, ...]:
        """Returns one line about each property of the text that is probably a mistake, given B rows per update."""
        config, length = self._config, self._config.max_length
        mean = self.n_train_tokens / self.n_train_documents
        lines = {
            f"an update of {batch_size:,} windows is more than an epoch, the training text has "
            f"{self.n_train_windows:,}; lower train.batch_tokens": batch_size > self.n_train_windows,
            f"the validation text has only {self.n_valid_tokens:,} tokens, so its loss says little; raise "
            "data.valid_fraction or set data.valid_sources": self.n_valid_tokens
            < max(_FEW_WINDOWS * length, _FEW_TOKENS),
            f"documents have {mean:.0f} tokens on average and cannot see each other, while a window has {length:,}; "
            "choose another data.document, or lower data.max_length": config.pack
            and config.document_mask
            and mean * _SHORT_DOCUMENTS < length,
        }
        found = [line for line, holds in lines.items() if holds]
        shards = (self._prepared.train, self._prepared.valid)
        return (*found, *unit_warnings(self._sources), *unknown_word_warnings(shards, self.tokenizer))

    def _train_shards(self) -> list[Shard]:
        """Returns the shards that are shuffled separately."""
        if not self._config.weights:
            return [self._prepared.train]
        ends = np.cumsum((0, *self._prepared.source_documents))
        return [self._prepared.train.documents(a, b) for a, b in itertools.pairwise(ends)]

    def _windows(self, shard: Shard, keep_last: bool = False, stride: int | None = None) -> Windows:
        length, pad_id = self._config.max_length, self.tokenizer.pad_id
        if not self._config.pack:
            return DocumentRows(shard, length, pad_id, stride=stride)
        options = {"document_mask": self._config.document_mask, "keep_last": keep_last}
        return PackedWindows(shard, length, pad_id, **options, stride=stride)

    def _train_dataset(self, seed: int, batch_size: int, shard: BatchShard) -> "_Batches":
        # With the same seed, sources of the same size would be shuffled into the same order.
        seeds = np.random.SeedSequence(seed).generate_state(len(self.train_windows)).tolist()
        parts = [
            grain.MapDataset.source(windows).shuffle(seed=part_seed).repeat()
            for windows, part_seed in zip(self.train_windows, seeds, strict=True)
        ]
        rows = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, self._config.weights)
        return _Batches(rows, batch_size, shard)

    def _read_ahead(self, batches: "grain.MapDataset[Element]") -> "grain.DatasetIterator[Element]":
        num_workers = self._config.num_workers
        return iter(
            batches.to_iter_dataset(grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=2 * num_workers))
        )


class _Padded:
    """The first `n` windows, then padding up to full batches."""

    def __init__(self, windows: Windows, n: int, batch_size: int, padding: Element):
        self._windows, self._n, self._padding = windows, n, padding
        self._n_rows = -(-n // batch_size) * batch_size

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, i: int) -> Element:
        return self._windows[i] if i < self._n else self._padding


class _Batches(grain.MapDataset):
    """The rows of each batch that belong to one process; no others are read."""

    def __init__(self, rows: "grain.MapDataset[Element]", batch_size: int, shard: BatchShard):
        super().__init__(rows)
        self._batch_size = batch_size
        self._rows = shard.rows(batch_size).tolist()

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size

    def __getitem__(self, index: int | slice) -> Element:
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._batch_size
        elements = [self._parent[first + row] for row in self._rows]
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}
