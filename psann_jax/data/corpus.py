"""The documents of an experiment and their split into training and validation text."""

import dataclasses
import functools
import itertools
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from psann_jax.config import DataConfig, require
from psann_jax.config.checks import refuse_inactive
from psann_jax.data.cache import key_of
from psann_jax.data.sources import Source, open_source
from psann_jax.utils.errors import UserError
from psann_jax.utils.progress_stream import progress_stream, updates_in_place


class Document(NamedTuple):
    """A text, the index and the part (see `Source.parts`) of its source, and whether it is validation text."""

    source: int
    is_valid: bool
    text: str
    part: str


class Corpus:
    """The training and validation documents, in a fixed order.

    The validation documents are those of `data.valid_sources` if given. Otherwise `choose_validation` draws a fraction
    `data.valid_fraction` of the documents of `data.sources`, the same with every tokenizer.

    Attributes:
      sources: the sources of `data.sources`.
      document: `data.document`, with "auto" replaced by what it chooses if that is the same for all .txt sources.
        Validation sources are read in the same way.
      fingerprint: a hash that changes with any document and with the split.
    """

    def __init__(self, config: DataConfig, progress: bool = True):
        """Opens the sources; reads no more than their fingerprints need.

        Raises:
          UserError: a source cannot be found, or a setting has no effect on these sources.
        """
        require(config.split_seed >= 0, "data.split_seed", f"is {config.split_seed}, must not be negative")
        self.sources = [open_source(spec, config) for spec in config.sources]
        units = {source.unit for source in self.sources if source.unit}
        self.document = units.pop() if len(units) == 1 else config.document
        alike = dataclasses.replace(config, document=self.document)
        self._valid_sources = [open_source(spec, alike, "data.valid_sources") for spec in config.valid_sources]
        _refuse_inactive(config, [*self.sources, *self._valid_sources])
        self._fraction, self._seed = config.valid_fraction, config.split_seed
        self._progress = progress
        texts, valid_texts = [[s.fingerprint for s in group] for group in (self.sources, self._valid_sources)]
        self.fingerprint = key_of(texts, valid_texts or (self._fraction, self._seed))

    def documents(self, label: str) -> Iterator[Document]:
        """Yields every document, source after source; those of `data.valid_sources` come last.

        Args:
          label: text of the progress bar.

        Raises:
          UserError: a source cannot be read or has no text, or it has changed since it was first read.
        """
        n_bytes, is_valid = self._n_bytes, self.is_valid
        with self._bar(label, total=sum(int(lengths.sum()) for lengths in n_bytes)) as bar:
            first = 0
            for source, lengths in enumerate(n_bytes):
                texts = ((text, part) for part, texts in self._all_sources[source].parts() for text in texts)
                for i, (found, length) in enumerate(itertools.zip_longest(texts, lengths)):
                    if found is None or length != len(found[0].encode()):
                        raise UserError(f"{self._all_sources[source].name}: changed while it was read; start again")
                    yield Document(source, bool(is_valid[first + i]), *found)
                    bar.update(int(length))
                first += len(lengths)

    def training_sample(self, n_bytes: int) -> Iterator[str]:
        """Yields randomly drawn training documents, `n_bytes` in total (0: all of them), in the order of the text.

        The document that was drawn last is truncated to fit.

        Raises:
          UserError: as `documents`.
        """
        lengths, train = np.concatenate(self._n_bytes), ~self.is_valid
        order = np.flatnonzero(train)[np.argsort(_random_bits(self._seed, int(train.sum())), kind="stable")]
        ends = np.cumsum(lengths[order])
        n_drawn = len(order) if not n_bytes else min(int(np.searchsorted(ends, n_bytes)) + 1, len(order))
        drawn = np.zeros(len(lengths), bool)
        drawn[order[:n_drawn]] = True
        excess = int(ends[n_drawn - 1]) - n_bytes if n_bytes else 0
        for i, document in enumerate(self.documents("drawing a sample")):
            if drawn[i]:
                truncated = excess > 0 and i == order[n_drawn - 1]
                yield document.text.encode()[:-excess].decode(errors="ignore") if truncated else document.text

    @functools.cached_property
    def is_valid(self) -> np.ndarray:
        """Whether each document is validation text, (documents,) bool."""
        counts = [len(lengths) for lengths in self._n_bytes]
        if self._valid_sources:
            return np.repeat(np.arange(len(counts)) >= len(self.sources), counts)
        source = np.repeat(np.arange(len(counts)), counts)
        return choose_validation(source, np.concatenate(self._n_bytes), self._fraction, self._seed)

    @property
    def _all_sources(self) -> list[Source]:
        return [*self.sources, *self._valid_sources]

    @functools.cached_property
    def _n_bytes(self) -> list[np.ndarray]:
        """The lengths of the documents of each source, in bytes of UTF-8."""
        out = []
        for source in self._all_sources:
            lengths = array("q")
            with self._bar(f"reading {source.name}") as bar:
                for text in source.documents():
                    lengths.append(len(text.encode()))
                    bar.update(lengths[-1])
            if not lengths:
                raise UserError(f"{source.name}: has no text, only blank lines")
            out.append(np.array(lengths, np.int64))
        return out

    def _bar(self, label: str, total: int | None = None) -> "tqdm[None]":
        return tqdm(
            desc=label,
            total=total,
            disable=not self._progress,
            unit="B",
            unit_scale=True,
            file=progress_stream(),
            mininterval=0.1 if updates_in_place(progress_stream()) else 30,
        )


def _refuse_inactive(config: DataConfig, sources: list[Source]) -> None:
    """Raises ConfigError for settings that differ from their defaults but have no effect on these sources."""
    used = frozenset[str]().union(*(source.settings for source in sources))
    # Version 0.1 saved "line", its default, with every config.
    if "document" not in used and config.document != "line":
        refuse_inactive(config, "data", "without .txt files (except article)", "document")
    if "text_field" not in used:
        refuse_inactive(config, "data", "on sources without records", "text_field")
    if config.valid_sources:
        refuse_inactive(config, "data", "with data.valid_sources", "valid_fraction")
    if len(config.sources) == 1:
        refuse_inactive(config, "data", "with one source", "weights")


def choose_validation(source: np.ndarray, n_bytes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws validation documents evenly from all sources and lengths.

    The documents are sorted by source and length and cut into equal groups, as many as there are validation documents
    to draw. One document is drawn from each group.

    Args:
      source: index of each document's source, (documents,).
      n_bytes: length of each document, (documents,).
      fraction: fraction of the documents to draw; at least one is drawn, and never all.
      seed: the same seed draws the same documents on every machine.

    Returns:
      Whether each document is validation text, (documents,) bool.

    Raises:
      UserError: there are fewer than two documents.
    """
    n = len(n_bytes)
    if n < 2:
        raise UserError(
            "data.valid_sources: is empty, but one document cannot be split into training and validation text; "
            "name a validation text (or set data.document to line or paragraph)"
        )
    n_valid = min(max(round(n * fraction), 1), n - 1)
    order = np.lexsort((n_bytes, source))  # stable: documents of equal length stay in order
    bounds = np.arange(n_valid + 1) * n // n_valid
    drawn = bounds[:-1] + (_random_bits(seed, n_valid) % np.diff(bounds).astype(np.uint64)).astype(np.int64)
    is_valid = np.zeros(n, bool)
    is_valid[order[drawn]] = True
    return is_valid


def _random_bits(seed: int, n: int) -> np.ndarray:
    # NumPy keeps the raw stream of a bit generator in all later versions, but not the distributions made from it.
    return np.random.PCG64(seed).random_raw(n)
