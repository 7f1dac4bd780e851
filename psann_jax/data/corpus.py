"""All documents of an experiment, and which of them are for validation."""

import functools
import itertools
import sys
from array import array
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from psann_jax.config import DataConfig, require
from psann_jax.data.cache import key_of
from psann_jax.data.sources import Source, open_source
from psann_jax.utils.errors import UserError


class Corpus:
    """The training and the validation documents, in a fixed order.

    With `data.valid_sources` these are the validation text. Otherwise `data.valid_fraction` of the documents of
    `data.sources` are, chosen by `choose_validation`, whatever the tokenizer.

    Attributes:
      sources: those of `data.sources`.
      fingerprint: changes with any document and with the division.
    """

    def __init__(self, config: DataConfig, progress: bool = True):
        """Finds the sources; nothing is read yet but what their fingerprints need.

        Raises:
          UserError: a source cannot be found, or a setting would do nothing with these sources.
        """
        require(config.split_seed >= 0, "data.split_seed", f"is {config.split_seed}, must not be negative")
        self.sources = [open_source(spec, config) for spec in config.sources]
        self._valid_sources = [open_source(spec, config, "data.valid_sources") for spec in config.valid_sources]
        _refuse_inactive(config, [*self.sources, *self._valid_sources])
        self._fraction, self._seed = config.valid_fraction, config.split_seed
        self._progress = progress
        texts, valid_texts = [[s.fingerprint for s in group] for group in (self.sources, self._valid_sources)]
        self.fingerprint = key_of(texts, valid_texts or (self._fraction, self._seed))

    def documents(self, label: str) -> Iterator[tuple[int, bool, str]]:
        """(source, whether it is for validation, text) of every document; fixed validation sources come last.

        Args:
          label: what the progress bar says.

        Raises:
          UserError: a text cannot be read, holds nothing or changes meanwhile.
        """
        n_bytes, is_valid = self._n_bytes, self.is_valid
        with self._bar(label, total=sum(int(lengths.sum()) for lengths in n_bytes)) as bar:
            first = 0
            for source, lengths in enumerate(n_bytes):
                texts = self._all_sources[source].documents()
                for i, (text, length) in enumerate(itertools.zip_longest(texts, lengths)):
                    if text is None or length != len(text.encode()):
                        raise UserError(f"{self._all_sources[source].name}: changed while it was read; start again")
                    yield source, bool(is_valid[first + i]), text
                    bar.update(int(length))
                first += len(lengths)

    def training_sample(self, n_bytes: int) -> Iterator[str]:
        """Training documents drawn at random, `n_bytes` in all; 0 for all of them.

        The last one drawn is cut to fit.
        """
        lengths, train = np.concatenate(self._n_bytes), ~self.is_valid
        order = np.flatnonzero(train)[np.argsort(_random_bits(self._seed, int(train.sum())), kind="stable")]
        ends = np.cumsum(lengths[order])
        n_drawn = len(order) if not n_bytes else min(int(np.searchsorted(ends, n_bytes)) + 1, len(order))
        drawn = np.zeros(len(lengths), bool)
        drawn[order[:n_drawn]] = True
        excess = int(ends[n_drawn - 1]) - n_bytes if n_bytes else 0
        for i, (_, _, text) in enumerate(self.documents("drawing a sample")):
            if not drawn[i]:
                continue
            if i == order[n_drawn - 1] and excess > 0:
                text = text.encode()[:-excess].decode("utf-8", errors="ignore")
            yield text

    @functools.cached_property
    def is_valid(self) -> np.ndarray:
        """For each document, whether it is for validation."""
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
        """For each source, the length of each document in bytes of UTF-8."""
        out = []
        for source in self._all_sources:
            lengths = array("q")
            with self._bar(f"reading {source.name}") as bar:
                for text in source.documents():
                    lengths.append(len(text.encode()))
                    bar.update(lengths[-1])
            if not lengths:
                raise UserError(f"{source.name}: holds no text, only blank lines")
            out.append(np.array(lengths, np.int64))
        return out

    def _bar(self, label: str, total: int | None = None) -> "tqdm[None]":
        return tqdm(
            desc=label,
            total=total,
            disable=not self._progress,
            unit="B",
            unit_scale=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )


def _refuse_inactive(config: DataConfig, sources: list[Source]) -> None:
    """Raises ConfigError for settings that differ from their defaults and would have no effect."""
    settings = {
        "document": ("without .txt files", any("document" in source.settings for source in sources)),
        "text_field": ("on sources without records", any("text_field" in source.settings for source in sources)),
        "valid_fraction": ("with data.valid_sources", not config.valid_sources),
        "weights": ("with one source", len(config.sources) > 1),
    }
    for name, (reason, acts) in settings.items():
        same = getattr(config, name) == getattr(DataConfig, name)
        require(acts or same, f"data.{name}", f"has no effect {reason}; leave it at {getattr(DataConfig, name)!r}")


def choose_validation(source: np.ndarray, n_bytes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws validation documents evenly from all sources and lengths.

    The documents are put in order of source and length and cut into as many equal groups as there are to be
    validation documents; one is drawn from each.

    Args:
      source: index of each document's source.
      n_bytes: length of each document.
      fraction: share of the documents, at least one and not all.
      seed: of the draw; the same on every machine.

    Returns:
      For each document, whether it is for validation.

    Raises:
      UserError: fewer than two documents.
    """
    n = len(n_bytes)
    if n < 2:
        raise UserError(
            "data.valid_sources: is empty, but one document cannot be divided into training and validation; "
            "name a validation text (or set data.document=line)"
        )
    n_valid = min(max(round(n * fraction), 1), n - 1)
    order = np.lexsort((n_bytes, source))  # stable: documents of equal length stay in order
    bounds = np.arange(n_valid + 1) * n // n_valid
    drawn = bounds[:-1] + (_random_bits(seed, n_valid) % np.diff(bounds).astype(np.uint64)).astype(np.int64)
    is_valid = np.zeros(n, bool)
    is_valid[order[drawn]] = True
    return is_valid


def _random_bits(seed: int, n: int) -> np.ndarray:
    # The raw stream of a bit generator is the part of numpy's random numbers that no later version may change.
    return np.random.PCG64(seed).random_raw(n)
