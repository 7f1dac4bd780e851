"""Text that is read, tokenised and cut into windows while a run trains, and never stored (`data.stream`).

Here a batch is not a function of the seed and the step. It follows from the state of the stream, which is in the
checkpoint. `open_text` returns the text of a run, streamed or not.
"""

import dataclasses
import functools
import hashlib
import itertools
import operator
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from grain import experimental

from psann_jax.config import DataConfig, require
from psann_jax.data.batches import WHOLE_BATCH, BatchShard
from psann_jax.data.cache import key_of
from psann_jax.data.corpus import SAMPLE_PIECE_BYTES, Corpus, in_random_order, refuse_unused, truncated
from psann_jax.data.encoding import encode_shard
from psann_jax.data.loader import TextData, load_text, load_tokenizer
from psann_jax.data.shards import Shard
from psann_jax.data.stream_sources import StreamPart, StreamSource, open_stream
from psann_jax.data.stream_windows import PartReader, StreamWindows, WindowFormat
from psann_jax.data.text_checks import repeat_warnings
from psann_jax.data.tokenizer import Tokenizer, check_settings
from psann_jax.data.valid_text import ValidText
from psann_jax.data.windows import Element
from psann_jax.utils.errors import UserError

_FORMAT = 1  # of the order of windows: changes with any change of it
_NAMED_PARTS = 32  # of a validation source; more are not told apart in results


def open_text(
    config: DataConfig, progress: bool = True, tokenizer: Tokenizer | None = None
) -> "TextData | StreamedText":
    """Returns the text of a run: prepared, or streamed with `data.stream`.

    Args:
      config: the `data` section.
      progress: show progress on stderr.
      tokenizer: the one to use; None: that of `config`.

    Raises:
      UserError: a source, the tokenizer or the cache cannot be used, or there is too little text.
    """
    if not config.stream:
        return load_text(config, progress, tokenizer=tokenizer)
    check_settings(config.tokenizer)
    sources = [open_stream(spec, config) for spec in config.sources]
    valid_sources = _valid_sources(config)
    used = (source.settings for source in (*sources, *valid_sources))
    refuse_unused(config, frozenset[str]().union(*used))
    if tokenizer is not None:  # no other size was requested, see `StreamedText.describe`
        settings = dataclasses.replace(config.tokenizer, vocab_size=tokenizer.vocab_size)
        config = dataclasses.replace(config, tokenizer=settings)
    else:
        tokenizer = _load_tokenizer(config, sources, progress)
    return StreamedText(config, tokenizer, sources, valid_sources)


def open_tokenizer(config: DataConfig, progress: bool = True) -> Tokenizer:
    """Returns the tokenizer of a run, as `open_text` does, without preparing its text.

    Raises:
      UserError: a source, the tokenizer or the cache cannot be used.
    """
    check_settings(config.tokenizer)
    if config.stream:
        return _load_tokenizer(config, [open_stream(spec, config) for spec in config.sources], progress)
    corpus = Corpus(config, progress)
    return load_tokenizer(config, corpus.fingerprint, corpus.training_sample, progress)


def _load_tokenizer(config: DataConfig, sources: Sequence[StreamSource], progress: bool) -> Tokenizer:
    sample = functools.partial(_sample, sources, config.split_seed)
    return load_tokenizer(config, _identity(sources), sample, progress)


def load_valid_text(config: DataConfig, tokenizer: Tokenizer) -> ValidText:
    """Reads the validation text of a streamed run; the end of its fingerprint is that of the run.

    Raises:
      UserError: the text cannot be read or is empty.
    """
    shard, names = _read_valid(_valid_sources(config), tokenizer, bool(config.record_template))
    return ValidText(config, tokenizer, shard, names, _fingerprint(shard, tokenizer))


def _valid_sources(config: DataConfig) -> list[StreamSource]:
    return [open_stream(spec, config, "data.valid_sources") for spec in config.valid_sources]


def _sample(sources: Sequence[StreamSource], seed: int, n_bytes: int) -> Iterator[str]:
    """Yields documents of `n_bytes` bytes to train a tokenizer on: the beginnings of parts in random order.

    What follows after the beginnings is read only if they are too short.
    """
    parts = [part for source in sources for part in source.parts]
    return truncated(_beginnings_first(in_random_order(parts, seed), 2 * n_bytes // len(parts)), n_bytes)


def _beginnings_first(parts: Sequence[StreamPart], n_bytes: int) -> Iterator[str]:
    limit = n_bytes + SAMPLE_PIECE_BYTES
    longer = []  # pairs of a part and the number of documents in its beginning
    for part in parts:
        n_read = 0
        for i, text in enumerate(part.documents()):
            if n_read >= limit:
                longer.append((part, i))
                break
            yield text
            n_read += len(text.encode())
    for part, n_documents in longer:
        yield from itertools.islice(part.documents(), n_documents, None)


def _identity(sources: Sequence[StreamSource]) -> Any:
    """Returns what tells the text of sources from others, JSON-like; without its content."""
    return [[source.identity, [part.identity for part in source.parts]] for source in sources]


def _fingerprint(shard: Shard, tokenizer: Tokenizer) -> str:
    """Returns a hash of a text in memory."""
    arrays = [shard.tokens_N, shard.offsets, *([] if shard.scored_N is None else [shard.scored_N])]
    return key_of([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays], tokenizer.fingerprint)


def _read_valid(
    sources: Sequence[StreamSource], tokenizer: Tokenizer, has_scored: bool
) -> tuple[Shard, list[tuple[str, int]]]:
    """Returns the validation text, in memory, and the number of documents of each of its parts."""
    names: list[str] = []

    def documents() -> Iterator[str]:
        for source in sources:
            for part in source.parts:
                for text in part.documents():
                    names.append(part.name if len(source.parts) <= _NAMED_PARTS else source.name)
                    yield text

    shard = encode_shard(documents(), tokenizer)
    if not shard.n_documents:
        raise UserError(f"data.valid_sources: {sources[0].name} has no text, only blank lines")
    if has_scored and shard.scored_N is None:
        shard = Shard(shard.tokens_N, shard.offsets, shard.text_bytes, np.ones(shard.n_tokens, np.uint8))
    return shard, [(name, len(list(same))) for name, same in itertools.groupby(names)]


class StreamBatches(Iterator[Element]):
    """The batches of a stream; deleting it, closing it or ending the program stops the threads that read ahead.

    Without that, a thread that runs native code when Python ends would abort the program.

    Attributes:
      close: stops the threads.
    """

    def __init__(self, batches: "grain.DatasetIterator[Element]", readers: Sequence[PartReader]):
        """Reads nothing yet; the readers are those at the source of the batches."""
        # In a list that closing empties: deleting an iterator when the modules are gone prints errors.
        self._batches = [batches]
        self.close = weakref.finalize(self, _close, self._batches, readers)

    def __next__(self) -> Element:
        return next(self._batches[0])

    def state(self) -> dict[str, Any]:
        """Returns the state after the batches returned so far, JSON-like."""
        return self._batches[0].get_state()


def _close(batches: "list[grain.DatasetIterator[Element]]", readers: Sequence[PartReader]) -> None:
    for reader in readers:
        reader.stop()  # or a thread would first fill its buffer
    batches.pop().close()


class StreamedText(ValidText):
    """Training batches of a stream, and validation batches of a text in memory; batches are those of `ValidText`.

    Several processes read different parts of the text, each with a state of its own.

    Attributes:
      tokens_per_row: number of tokens in a row of a training batch, L.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        sources: Sequence[StreamSource],
        valid_sources: Sequence[StreamSource],
    ):
        """Reads the validation text; `open_text` does everything from the settings on.

        Args:
          config: the `data` section.
          tokenizer: encodes the text.
          sources: of the training text.
          valid_sources: of the validation text.

        Raises:
          UserError: the validation text cannot be read or is empty.
        """
        valid, names = _read_valid(valid_sources, tokenizer, bool(config.record_template))
        identity = key_of(_FORMAT, _identity(sources), tokenizer.fingerprint)
        super().__init__(config, tokenizer, valid, names, f"stream-{identity}-{_fingerprint(valid, tokenizer)}")
        self.tokens_per_row = config.max_length
        self._sources = tuple(sources)
        self._saved: list[dict[str, Any]] = []  # states of all processes
        self._initial: dict[str, Any] | None = None
        self._batches: StreamBatches | None = None
        self._place = (0, 1)  # index of this process's reader, and number of readers

    def restore(self, states: Sequence[dict[str, Any] | None], process: int) -> None:
        """Makes `train_batches` begin after the batches that had been returned when `state` returned these.

        Args:
          states: of all processes.
          process: index of this process.
        """
        self._saved, self._initial = [state for state in states if state is not None], states[process]

    def check_shard(self, shard: BatchShard) -> None:
        """Checks that every process can read parts of its own.

        Raises:
          UserError: processes have some rows in common and others not, or a source has fewer parts than readers.
        """
        _, n_readers = shard.reader()
        for names, parts in self._groups():
            problem = f"{names}: {len(parts)} parts are too few for {n_readers} processes; name more files"
            require(len(parts) >= n_readers, "data.sources", problem)

    def state(self) -> dict[str, Any] | None:
        """Returns the state after the batches returned so far, JSON-like; None at the beginning of the stream."""
        if self._batches is None:
            return self._initial
        reader, n_readers = self._place
        return {"reader": reader, "n_readers": n_readers, "stream": self._batches.state()}

    def train_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, shard: BatchShard = WHOLE_BATCH
    ) -> StreamBatches:
        """Returns the endless batches of a stream, read ahead by threads.

        Args:
          seed: seed of the order of the parts and of the shuffles.
          batch_size: B, rows over all processes.
          start_step: step of the first batch; above 0, call `restore` before.
          shard: the rows to return.

        Raises:
          UserError: batch_size cannot be divided over the processes, see `check_shard`, or the restored state is of
            another number of readers.
        """
        self.check_shard(shard)
        self._place = shard.reader()
        readers = self._readers(seed)
        batches = iter(self._dataset(readers, seed, len(shard.rows(batch_size))))
        if self._saved:
            batches.set_state(self._saved_state()["stream"])
        elif start_step:
            raise ValueError("a stream begins in the middle only from a state")
        self._batches = StreamBatches(batches, readers)
        return self._batches

    def _saved_state(self) -> dict[str, Any]:
        """Returns the saved state of this process's reader."""
        reader, n_readers = self._place
        n_saved = self._saved[0]["n_readers"]
        require(
            n_saved == n_readers,
            "data.stream",
            f"the run was saved by {n_saved} processes that read different rows, and now has {n_readers}; resume it "
            "with as many processes and the same mesh",
        )
        return next(state for state in self._saved if state["reader"] == reader)

    def _readers(self, seed: int) -> list[PartReader]:
        """Returns the readers of this process: of each source with `data.weights`, else one."""
        return [PartReader(parts, f"{seed} {i}", *self._place) for i, (_, parts) in enumerate(self._groups())]

    def _groups(self) -> list[tuple[str, list[StreamPart]]]:
        """Returns what one reader of each process reads: the names of sources, and their parts."""
        groups = [(source,) for source in self._sources] if self._config.weights else [self._sources]
        return [
            (", ".join(source.name for source in group), [part for source in group for part in source.parts])
            for group in groups
        ]

    def _dataset(self, readers: Sequence[PartReader], seed: int, n_rows: int) -> "grain.IterDataset[Element]":
        """Returns batches of windows of the sources, shuffled, that threads read ahead."""
        length, has_mask = self._config.max_length, self._config.document_mask
        form = WindowFormat(self.tokenizer, length, has_mask, self.has_scored)
        windows = [StreamWindows(reader, form) for reader in readers]
        size, weights = self._config.shuffle_buffer, self._config.weights
        rows: grain.IterDataset[Element] = grain.IterDataset.mix(windows, weights) if weights else windows[0]
        if size > 1:
            # While the windows of one buffer are used, a thread reads those of the next.
            rows = experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=size)
            (shuffle_seed,) = np.random.SeedSequence(seed).generate_state(1).tolist()
            rows = experimental.WindowShuffleIterDataset(rows, window_size=size, seed=shuffle_seed)
        batches = rows.batch(n_rows, drop_remainder=True)
        return experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2 * self._config.num_workers)

    def describe(self) -> str:
        """Returns a summary of the text and the tokenizer, one ``name  fact`` per line."""
        config = self._config
        weights = [f" (weight {weight:g})" for weight in config.weights] or [""] * len(config.sources)
        n_parts = sum(len(source.parts) for source in self._sources)
        return "\n".join(
            (
                f"text        {', '.join(map(operator.add, config.sources, weights))}",
                *self._describe_targets(),
                f"training    a stream, parts: {n_parts:,}; {config.shuffle_buffer:,} windows of {config.max_length} "
                "shuffled at a time",
                *self._describe_validation(", ".join(config.valid_sources)),
            )
        )

    def warnings(self, batch_size: int) -> tuple[str, ...]:
        """Returns one line about each property of the text that is probably a mistake, given B rows per update."""
        small = f"the validation text has only {self.n_valid_tokens:,} tokens, so its loss says little"
        buffer = f"data.shuffle_buffer={self._config.shuffle_buffer} is less than an update of {batch_size:,} windows"
        lines = {small: self.is_small, buffer: 1 < self._config.shuffle_buffer < batch_size}
        repeats = repeat_warnings([part.name for part in source.parts] for source in self._sources)
        return (*(line for line, holds in lines.items() if holds), *repeats)
