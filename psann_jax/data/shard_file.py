"""One file of tokenised documents, with checksums that are verified when a part of it is first used.

A file has these sections, each padded to a multiple of 64 bytes:

  header          a JSON object and a newline
  checksums       the CRC-32 of each block of 64 KiB of the rest of the file, uint32
  train tokens    uint16 or uint32
  valid tokens
  train offsets   position of the first token of each document, then the number of tokens, int64
  valid offsets
  train scored    whether each token is a target of the loss, uint8; only if some are not, as in prompts
  valid scored
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from psann_jax.utils.errors import DataError, one_line
from psann_jax.utils.files import atomic_path

SIDES = ("train", "valid")
Side = Literal["train", "valid"]
_ALIGN, BLOCK = 64, 1 << 16
_MAX_HEADER = 1 << 28


@dataclass(frozen=True)
class Counts:
    """What a file has of one side of the split.

    Attributes:
      tokens: number of tokens, including bos and eos.
      documents: number of documents.
      text_bytes: length of their text in bytes of UTF-8.
      files: pairs of the index of a file in its source and the number of its documents, in order; () for training text.
    """

    tokens: int
    documents: int
    text_bytes: int
    files: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Header:
    """What a file contains.

    Attributes:
      source: index of the source of the documents.
      dtype: of the tokens.
      is_last: whether no other file continues the piece.
      train: counts of training text.
      valid: counts of validation text.
      crc32: of the checksums.
      has_scored: whether the file says which tokens are targets.
    """

    source: int
    dtype: str
    is_last: bool
    train: Counts
    valid: Counts
    crc32: int
    has_scored: bool = False

    @property
    def n_documents(self) -> int:
        """Number of documents of both sides."""
        return self.train.documents + self.valid.documents

    def sections(self) -> list[tuple[np.dtype[Any], int]]:
        """Returns type and length of the arrays after the checksums."""
        tokens = [(np.dtype(self.dtype), counts.tokens) for counts in (self.train, self.valid)]
        offsets = [(np.dtype(np.int64), counts.documents + 1) for counts in (self.train, self.valid)]
        scored = [(np.dtype(np.uint8), counts.tokens) for counts in (self.train, self.valid) if self.has_scored]
        return [*tokens, *offsets, *scored]

    def n_bytes(self) -> int:
        """Returns the length of the sections after the checksums."""
        return sum(_padded(dtype.itemsize * n) for dtype, n in self.sections())

    def file_bytes(self) -> int:
        """Returns the length of a file with this header."""
        return len(self.encode()) + _padded(4 * self.n_blocks()) + self.n_bytes()

    def n_blocks(self) -> int:
        """Returns the number of blocks that have checksums."""
        return -(-self.n_bytes() // BLOCK)

    def encode(self) -> bytes:
        """Returns the first line of a file."""
        line = json.dumps({**self.to_json(), "byte_order": sys.byteorder}).encode()
        return line.ljust(_padded(len(line) + 1) - 1) + b"\n"

    def to_json(self) -> dict[str, Any]:
        """Returns the header as JSON-like values; without `has_scored` where it is False, as in earlier versions."""
        values = dataclasses.asdict(self)
        return values if self.has_scored else {name: value for name, value in values.items() if name != "has_scored"}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Header":
        """Returns the header that `to_json` wrote; raises KeyError, TypeError or ValueError for other content."""
        counts = {}
        for side in SIDES:
            given = content[side]
            files = tuple((int(file), int(n)) for file, n in given["files"])
            counts[side] = Counts(int(given["tokens"]), int(given["documents"]), int(given["text_bytes"]), files)
        dtype = np.dtype(content["dtype"]).name
        numbers = (counts["train"], counts["valid"], int(content["crc32"]))
        has_scored = bool(content.get("has_scored", False))
        return cls(int(content["source"]), dtype, bool(content["is_last"]), *numbers, has_scored)


def _padded(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


# --- writing --------------------------------------------------------------------------------------------


@dataclass
class Documents:
    """Documents ``[bos] ids [eos]`` of one side, in memory."""

    wide: bool
    tokens: "array[int]" = field(init=False)
    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    text_bytes: int = 0
    files: list[list[int]] = field(default_factory=list)
    scored: bytearray = field(default_factory=bytearray)
    has_scored: bool = False

    def __post_init__(self) -> None:
        self.tokens = array("I" if self.wide else "H")

    def add(self, ids: list[int], text_bytes: int, file: int, scored: list[bool] | None = None) -> None:
        """Appends a document, from a file of this index; `scored` are the targets among its tokens, if not all are."""
        self.scored += b"\1" * len(ids) if scored is None else bytes(scored)
        self.has_scored = self.has_scored or scored is not None
        self.tokens.fromlist(ids)
        self.offsets.append(len(self.tokens))
        self.text_bytes += text_bytes
        if self.files and self.files[-1][0] == file:
            self.files[-1][1] += 1
        else:
            self.files.append([file, 1])

    def counts(self) -> Counts:
        """Returns what has been added."""
        files = tuple((file, n) for file, n in self.files)
        return Counts(len(self.tokens), len(self.offsets) - 1, self.text_bytes, files)


def write_shard_file(path: Path, source: int, is_last: bool, train: Documents, valid: Documents) -> Header:
    """Writes a file as a whole or not at all, and returns its header.

    Raises:
      OSError: the file cannot be written.
    """
    arrays = [np.frombuffer(x, x.typecode) for x in (train.tokens, valid.tokens, train.offsets, valid.offsets)]
    has_scored = train.has_scored or valid.has_scored
    if has_scored:
        arrays += [np.frombuffer(side.scored, np.uint8) for side in (train, valid)]
    body = b"".join(_pad(x.tobytes()) for x in arrays)
    sums = np.array([zlib.crc32(body[i : i + BLOCK]) for i in range(0, len(body), BLOCK)], np.uint32).tobytes()
    dtype = "uint32" if train.wide else "uint16"
    trained = dataclasses.replace(train.counts(), files=())  # nobody asks, and there may be 100,000
    header = Header(source, dtype, is_last, trained, valid.counts(), zlib.crc32(sums), has_scored)
    with atomic_path(path, fsync=True) as temporary, open(temporary, "wb") as file:
        file.writelines((header.encode(), _pad(sums), body))
    return header


def _pad(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")


# --- reading --------------------------------------------------------------------------------------------


def read_header(path: Path) -> Header | None:
    """Returns the header of a file; None if there is no such file, or if it is cut off or of another format.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with _read_errors(path), open(path, "rb") as file:
            content = json.loads(file.readline(_MAX_HEADER))
            header = Header.from_json(content)
            is_intact = zlib.crc32(file.read(4 * header.n_blocks())) == header.crc32
            size = path.stat().st_size
        return header if is_intact and content["byte_order"] == sys.byteorder and size == header.file_bytes() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Converts an OSError other than FileNotFoundError to a DataError. The file is kept, since it may be intact."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error


class ShardFile:
    """A file, opened and verified when it is used.

    Attributes:
      path: of the file.
      header: what it must contain.
    """

    def __init__(self, path: Path, header: Header):
        self.path, self.header = path, header

    def has_size(self) -> bool:
        """Returns whether the file exists and has the size that its header requires."""
        try:
            return self.path.stat().st_size == self.header.file_bytes()
        except OSError:
            return False

    def tokens(self, side: Side, start: int, stop: int) -> np.ndarray:
        """Returns the tokens [start, stop) of one side.

        Raises:
          DataError: the file is damaged; it is deleted, so that the next start prepares it again.
        """
        return self._section(SIDES.index(side), start, stop)

    def scored(self, side: Side, start: int, stop: int) -> np.ndarray:
        """Returns whether the tokens [start, stop) of one side are targets, uint8.

        Raises:
          DataError: as `tokens`.
        """
        if not self.header.has_scored:
            return np.ones(stop - start, np.uint8)
        return self._section(4 + SIDES.index(side), start, stop)

    def offsets(self, side: Side) -> np.ndarray:
        """Returns the offsets of the documents of one side, then the number of tokens.

        Raises:
          DataError: as `tokens`.
        """
        return self._offsets[side]

    @functools.cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        sizes = (self.header.train.documents + 1, self.header.valid.documents + 1)
        return {side: self._section(2 + i, 0, sizes[i]) for i, side in enumerate(SIDES)}

    def _section(self, index: int, start: int, stop: int) -> np.ndarray:
        mapped, dtype = self._mapped, self._types[index]
        first, last = mapped.starts[index] + start * dtype.itemsize, mapped.starts[index] + stop * dtype.itemsize
        for block in range(first // BLOCK, -(-last // BLOCK)):
            if not mapped.verified[block]:
                if zlib.crc32(mapped.body[block * BLOCK : (block + 1) * BLOCK].data) != mapped.checksums[block]:
                    self._refuse()
                mapped.verified[block] = 1
        return mapped.body[first:last].view(dtype)

    @functools.cached_property
    def _types(self) -> list[np.dtype[Any]]:
        return [dtype for dtype, _ in self.header.sections()]

    @functools.cached_property
    def _mapped(self) -> "_Mapped":
        if read_header(self.path) != self.header:
            self._refuse()
        # The mapping outlives the file, so no file stays open.
        with _read_errors(self.path), pa.memory_map(str(self.path)) as file:
            content = np.frombuffer(file.read_buffer(), np.uint8)
        starts = [0, *itertools.accumulate(_padded(dtype.itemsize * n) for dtype, n in self.header.sections())]
        n_blocks = self.header.n_blocks()
        body = len(content) - starts[-1]
        checksums = content[body - _padded(4 * n_blocks) :][: 4 * n_blocks].view(np.uint32)
        return _Mapped(content[body:], starts, checksums, bytearray(n_blocks))

    def _refuse(self) -> NoReturn:
        """Raises DataError, and makes the next start prepare the file again."""
        hint = "start again"
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            hint = "delete it and start again"
        raise DataError(f"{self.path}: is damaged or missing; {hint}, which prepares this part of the text again")


class _Mapped(NamedTuple):
    """The bytes after the checksums, where its sections start, the checksums, and which blocks have been verified."""

    body: np.ndarray
    starts: list[int]
    checksums: np.ndarray
    verified: bytearray
