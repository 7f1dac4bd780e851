"""The documents of an experiment and their split into training and validation text."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from psann_jax.config import DataConfig, require
from psann_jax.config.checks import refuse_inactive
from psann_jax.data.cache import key_of
from psann_jax.data.pieces import Piece
from psann_jax.data.records import RECORD_SETTINGS
from psann_jax.data.sources import PIECE_BYTES, Source, open_source, read_piece
from psann_jax.data.split import TRAIN, VALID, Split, document_hash, find_split

_P = TypeVar("_P")
SAMPLE_PIECE_BYTES = 1 << 20
# At most so many times the bytes of a sample are read to draw it, and so many more documents than needed are drawn.
_MAX_READ, _SURPLUS = 4, 1.25


class Document(NamedTuple):
    """A text, the index of its source, and whether it is validation text."""

    source: int
    is_valid: bool
    text: str


class CorpusPiece(NamedTuple):
    """A piece, the index of its source, and the rule that splits its documents."""

    source: int
    split: Split
    piece: Piece


class Corpus:
    """The training and validation documents, in a fixed order.

    The validation documents are those of `data.valid_sources` if given. Otherwise they are a fraction
    `data.valid_fraction` of the documents of `data.sources`, see `psann_jax.data.split`.

    Attributes:
      sources: the sources of `data.sources`.
      valid_sources: the sources of `data.valid_sources`.
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
        self.sources = [open_source(spec, config, progress=progress) for spec in config.sources]
        units = {source.unit for source in self.sources if source.unit}
        self.document = units.pop() if len(units) == 1 else config.document
        alike = dataclasses.replace(config, document=self.document)
        self.valid_sources = [open_source(spec, alike, "data.valid_sources", progress) for spec in config.valid_sources]
        sources = [*self.sources, *self.valid_sources]
        refuse_unused(config, frozenset[str]().union(*(source.settings for source in sources)))
        self._fraction, self._seed = config.valid_fraction, config.split_seed
        texts, valid_texts = [[s.fingerprint for s in group] for group in (self.sources, self.valid_sources)]
        self.fingerprint = key_of(texts, valid_texts or ("by hash", self._fraction, self._seed))

    def pieces(self, piece_bytes: int = PIECE_BYTES) -> list[CorpusPiece]:
        """Returns the pieces of all sources, in order; those of `data.valid_sources` come last.

        Raises:
          UserError: a source cannot be read, or the text is too short to be split.
        """
        return [
            *(CorpusPiece(i, self.split, piece) for i, piece in _pieces(self.sources, piece_bytes)),
            *(
                CorpusPiece(len(self.sources) + i, VALID, piece)
                for i, piece in _pieces(self.valid_sources, piece_bytes)
            ),
        ]

    def documents(self) -> Iterator[Document]:
        """Yields every document, source after source; those of `data.valid_sources` come last.

        Raises:
          UserError: as `pieces`, or a source has changed since it was opened.
        """
        for source, split, piece in self.pieces():
            for _, text in read_piece(piece):
                yield Document(source, split.is_valid(text), text)

    @functools.cached_property
    def split(self) -> Split:
        """The split of `data.sources`.

        Raises:
          UserError: as `pieces`.
        """
        if self.valid_sources:
            return TRAIN
        pieces = in_random_order([piece for _, piece in _pieces(self.sources, SAMPLE_PIECE_BYTES)], self._seed)
        return find_split((text for piece in pieces for _, text in read_piece(piece)), self._fraction, self._seed)

    def training_sample(self, n_bytes: int) -> Iterator[str]:
        """Yields training documents, drawn at random if they have more than `n_bytes` bytes in total (0: all of them).

        The last document is truncated to fit. If the text is much larger than the sample, the documents are drawn from
        randomly chosen MiBs of it. Of a file that is never cut (see `file_pieces`), only the beginning may be read. Of
        one whose text may be longer than it seems, only about its share of the sample is taken while others have more.

        Raises:
          UserError: as `documents`.
        """
        pieces = [piece for _, piece in _pieces(self.sources, SAMPLE_PIECE_BYTES)]
        if not n_bytes:
            return self._in_order(pieces)
        n_text = sum(piece.n_bytes for piece in pieces)
        is_small = n_text <= n_bytes and not any(piece.may_be_longer for piece in pieces)
        return truncated(self._in_order(pieces) if is_small else self._drawn(pieces, n_bytes, n_text), n_bytes)

    def _in_order(self, pieces: list[Piece]) -> Iterator[str]:
        return (text for piece in pieces for _, text in read_piece(piece) if not self.split.is_valid(text))

    def _drawn(self, pieces: list[Piece], n_bytes: int, n_text: int) -> Iterator[str]:
        fraction = max(1 / _MAX_READ, _SURPLUS * n_bytes / max(n_text, 1))
        limit = 2 * n_bytes // len(pieces) + SAMPLE_PIECE_BYTES
        turn, last = 0, 0
        while turn <= last:  # the later ones only if the texts of the earlier ones are too few
            for piece in in_random_order(pieces, self._seed):
                for text_turn, text in self._turns(piece, fraction, limit):
                    last = max(last, text_turn)
                    if text_turn == 2 > turn:
                        break
                    if text_turn == turn and not self.split.is_valid(text):
                        yield text
            turn += 1

    def _turns(self, piece: Piece, fraction: float, limit: int) -> Iterator[tuple[int, str]]:
        """Yields the documents of a piece, each with the turn in which a sample takes it.

        Those of turn 0 are drawn at random from the first `limit` bytes, those of turn 1 are the others of these, and
        those of turn 2 follow after them.
        """
        n_read, n_drawn = 0, 0
        most = fraction * piece.n_bytes if piece.may_be_longer else math.inf
        for _, text in read_piece(piece):
            size = len(text.encode())
            is_drawn = n_drawn < most and document_hash(text, self._seed, "sample") < fraction * (1 << 64)
            yield 2 if n_read >= limit else 0 if is_drawn else 1, text
            n_read, n_drawn = n_read + size, n_drawn + is_drawn * size


def _pieces(sources: Iterable[Source], piece_bytes: int) -> Iterator[tuple[int, Piece]]:
    return ((i, piece) for i, source in enumerate(sources) for piece in source.pieces(piece_bytes))


def truncated(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """Yields the first `n_bytes` bytes of texts."""
    for text in texts:
        encoded = text.encode()
        if len(encoded) >= n_bytes:
            yield encoded[:n_bytes].decode(errors="ignore")
            return
        yield text
        n_bytes -= len(encoded)


def in_random_order(pieces: Sequence[_P], seed: int) -> list[_P]:
    """Returns pieces of a text in an order that depends on their number and the seed only."""
    order = sorted(range(len(pieces)), key=lambda i: document_hash(str(i), seed, "pieces"))
    return [pieces[i] for i in order]


def refuse_unused(config: DataConfig, used: frozenset[str]) -> None:
    """Raises ConfigError for settings that differ from their defaults but have no effect on the sources.

    Args:
      config: the `data` section.
      used: what has an effect on one of them, see `Source.settings`.
    """
    # Version 0.1 saved "line", its default, with every config.
    if "document" not in used and config.document != "line":
        refuse_inactive(config, "data", "without .txt files (except article)", "document")
    if "text_field" not in used:
        refuse_inactive(config, "data", "on sources without records", *RECORD_SETTINGS)
    if config.valid_sources:
        refuse_inactive(config, "data", "with data.valid_sources", "valid_fraction")
    if len(config.sources) == 1:
        refuse_inactive(config, "data", "with one source", "weights")
