"""Pieces of sources: parts of about the same size, each of which one task reads and tokenises.

A piece is plain data, so that any process can read it: a group of successive files, a byte range of a large .txt or
.jsonl file, a run of row groups of a .parquet file, or a range of the records of a data set. Pieces depend on the
content and its order only. In order, they give the documents of the source.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from psann_jax.data import files
from psann_jax.data.content import Content
from psann_jax.data.records import Records
from psann_jax.data.text_units import Unit

_EXPANSION = 4  # about how many bytes of text a byte of a .gz, .xz, .zst or .parquet file gives


@dataclass(frozen=True)
class Part:
    """A file or another source of one name, or a range of it.

    Attributes:
      kind: file, or the prefix of the name of another source.
      name: path of the file, or the name of the source.
      file: index of the file in its source; 0 for other sources.
      start: first byte of a .txt or .jsonl file, row group of a .parquet file, or record of a data set.
      stop: end of the range; None: the end.
      stamp: size and time of change of the file when its content was hashed; None for other sources.
    """

    kind: Literal["file", "builtin", "tfds", "hf"]
    name: str
    file: int = 0
    start: int = 0
    stop: int | None = None
    stamp: tuple[int, int] | None = None


@dataclass(frozen=True)
class Piece:
    """Parts of a source that one task reads.

    Attributes:
      parts: in the order of the documents.
      document: what one document of a .txt file is; "article": also of records.
      records: which fields of records are the document.
      n_bytes: estimated length of the text in bytes.
    """

    parts: tuple[Part, ...]
    document: Unit
    records: Records
    n_bytes: int

    @property
    def may_be_longer(self) -> bool:
        """Whether the text may have more than `n_bytes` bytes: that of compressed files, .parquet and data sets."""
        plain = (part.kind == "builtin" or (part.kind == "file" and _is_plain(Path(part.name))) for part in self.parts)
        return not all(plain)


def file_pieces(
    paths: Sequence[Path], contents: Sequence[Content], document: Unit, records: Records, piece_bytes: int
) -> list[Piece]:
    """Cuts files into pieces.

    Args:
      paths: the files.
      contents: of the files.
      document: what one document of a .txt file is; "article": also of records.
      records: which fields of records are the document.
      piece_bytes: size of a piece. Files that are compressed, one document, or articles or chapters are never cut.

    Raises:
      UserError: a file cannot be read.
    """
    pieces: list[Piece] = []
    group: list[Part] = []
    group_bytes = 0

    def end_group() -> None:
        nonlocal group, group_bytes
        if group:
            pieces.append(Piece(tuple(group), document, records, group_bytes))
        group, group_bytes = [], 0

    for index, (path, content) in enumerate(zip(paths, contents, strict=True)):
        stamp = (content.size, content.mtime_ns)
        size = content.size * (1 if _is_plain(path) else _EXPANSION)
        if group_bytes + size > piece_bytes:
            end_group()
        if size <= piece_bytes:
            group.append(Part("file", str(path), index, stamp=stamp))
            group_bytes += size
        else:
            for start, stop, n_bytes in _ranges(path, size, document, piece_bytes):
                part = Part("file", str(path), index, start, stop, stamp)
                pieces.append(Piece((part,), document, records, n_bytes))
    end_group()
    return pieces


def record_pieces(
    part: Part, n_records: int, n_bytes: int, document: Unit, records: Records, piece_bytes: int
) -> list[Piece]:
    """Cuts a data set into pieces of equal numbers of records.

    Args:
      part: the data set.
      n_records: number of its records.
      n_bytes: estimated length of its text in bytes.
      document: "article" if records are lines of articles, which are never cut; otherwise without effect.
      records: which fields of records are the document.
      piece_bytes: size of a piece.
    """
    n = 1 if document == "article" else min(max(-(-n_bytes // piece_bytes), 1), max(n_records, 1))
    bounds = [i * n_records // n for i in range(n + 1)]
    return [
        Piece((Part(part.kind, part.name, 0, a, b),), document, records, n_bytes // n)
        for a, b in itertools.pairwise(bounds)
    ]


def _is_plain(path: Path) -> bool:
    kind, compression = files.split_extension(path)
    return kind in files.TEXT_FORMATS and not compression


def _ranges(path: Path, size: int, document: Unit, piece_bytes: int) -> Iterable[tuple[int, int | None, int]]:
    """Yields start, stop and estimated bytes of text of the ranges of a large file."""
    if not files.has_ranges(path, document):
        yield 0, None, size
    elif path.suffix.lower() == ".parquet":
        yield from _row_groups(files.row_group_sizes(path), piece_bytes)
    else:
        n = -(-size // piece_bytes)
        bounds = [i * size // n for i in range(n + 1)]
        yield from ((a, b, b - a) for a, b in itertools.pairwise(bounds))


def _row_groups(sizes: Sequence[int], piece_bytes: int) -> Iterator[tuple[int, int, int]]:
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > piece_bytes:
            yield start, i, total
            start, total = i, 0
        total += size
    yield start, len(sizes), total
