"""Token shards: text that is tokenised once and then read from disk by position."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from psann_jax.data.shard_file import ShardFile, Side

Kind = Literal["tokens", "scored"]  # of the values that a file has for each token


@dataclass(frozen=True)
class Shard:
    """Documents ``[bos] ids [eos]``, one after another.

    Attributes:
      tokens_N: token ids, uint16 or uint32: an array, or `FileTokens`.
      offsets: position of the first token of each document, then the number of tokens; int64, (documents + 1,): an
        array, or `FileOffsets`.
      text_bytes: length of the text of all documents in bytes of UTF-8.
      scored_N: whether each token is a target of the loss, uint8: an array, or `FileTokens`; None if all are.
    """

    tokens_N: np.ndarray
    offsets: np.ndarray
    text_bytes: int
    scored_N: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including bos and eos."""
        return len(self.tokens_N)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Returns the positions of the first tokens of the documents that have some of the tokens [start, stop)."""
        if isinstance(cast(Any, self.offsets), FileOffsets):
            return cast(FileOffsets, self.offsets).starts(start, stop)
        return _starts(self.offsets, start, stop)

    def documents(self, first: int, last: int) -> "Shard":
        """Returns the documents [first, last) as a shard, with `text_bytes` 0."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        tokens, offsets, scored = cast(Any, self.tokens_N), cast(Any, self.offsets), cast(Any, self.scored_N)
        if isinstance(tokens, FileTokens):  # they have no slices that read nothing
            scored = None if scored is None else scored.part(start, end)
            return Shard(cast(Any, tokens.part(start, end)), offsets.part(first, last), 0, scored)
        scored = None if scored is None else scored[start:end]
        return Shard(tokens[start:end], offsets[first : last + 1] - start, 0, scored)


def _starts(offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    return offsets[offsets.searchsorted(start, "right") - 1 : offsets.searchsorted(stop, "left")]


@dataclass(frozen=True)
class Prepared:
    """The shards of a corpus.

    Attributes:
      train: training documents, source after source.
      valid: validation documents.
      source_documents: number of training documents of each source.
      fingerprint: a hash that changes with the text, its split and the tokenizer.
      valid_names: in the order of the validation text, the name of each file or other source and the number of its
        documents; () in shards of versions that did not keep it.
    """

    train: Shard
    valid: Shard
    source_documents: tuple[int, ...]
    fingerprint: str
    valid_names: tuple[tuple[str, int], ...] = ()


def join_files(files: Sequence[ShardFile], side: Side) -> Shard:
    """Returns one side of several files, one after another, as a shard. Files are opened when they are read."""
    joined = _Files(files, side)
    text_bytes = sum(getattr(file.header, side).text_bytes for file in files)
    tokens = FileTokens(joined, 0, joined.token_starts[-1])
    offsets = FileOffsets(joined, 0, joined.document_starts[-1])
    has_scored = any(file.header.has_scored for file in files)  # on either side, so that batches have the same arrays
    scored = FileTokens(joined, 0, joined.token_starts[-1], "scored") if has_scored else None
    # They have what arrays have as far as windows and loader use it; typed as arrays, so that arrays do as well.
    return Shard(cast(np.ndarray, tokens), cast(np.ndarray, offsets), text_bytes, cast(Any, scored))


class _Files:
    """The files that have documents of one side, and the positions of their first tokens and documents among all."""

    def __init__(self, files: Sequence[ShardFile], side: Side):
        self.side = side
        self.files = [file for file in files if getattr(file.header, side).documents]
        self.dtypes = {"tokens": np.dtype(files[0].header.dtype), "scored": np.dtype(np.uint8)}
        counts = [getattr(file.header, side) for file in self.files]
        self.token_starts = [0, *itertools.accumulate(count.tokens for count in counts)]
        self.document_starts = [0, *itertools.accumulate(count.documents for count in counts)]

    def values(self, kind: Kind, start: int, stop: int) -> np.ndarray:
        """Returns the tokens [start, stop), or whether they are targets."""
        i = bisect.bisect_right(self.token_starts, start) - 1
        if i < len(self.files) and stop <= self.token_starts[i + 1]:
            return self._read(kind, i, start, stop)
        parts = []
        while start < stop:
            end = self.token_starts[i + 1]
            parts.append(self._read(kind, i, start, min(stop, end)))
            start, i = end, i + 1
        return _concatenate(parts, self.dtypes[kind])

    def _read(self, kind: Kind, i: int, start: int, stop: int) -> np.ndarray:
        read = self.files[i].tokens if kind == "tokens" else self.files[i].scored
        return read(self.side, start - self.token_starts[i], stop - self.token_starts[i])

    def offsets(self, first: int, last: int) -> np.ndarray:
        """Returns the positions of the first tokens of the documents [first, last); that of the end is n_tokens."""
        parts, i = [], min(bisect.bisect_right(self.document_starts, first), len(self.files)) - 1
        while first < last and i >= 0:
            start, end = self.document_starts[i], self.document_starts[i + 1]
            if i == len(self.files) - 1:
                end += 1  # the last file has the end of all
            local = self.files[i].offsets(self.side)[first - start : min(last, end) - start]
            parts.append(local + self.token_starts[i])
            first, i = end, i + 1
        return _concatenate(parts, np.dtype(np.int64)) if self.files else np.zeros(last - first, np.int64)

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Returns what `Shard.starts` returns."""
        i = bisect.bisect_right(self.token_starts, start) - 1
        first = self.token_starts[i]
        found = _starts(self.files[i].offsets(self.side), start - first, stop - first) + first
        if stop <= self.token_starts[i + 1]:
            return found
        parts = [found]
        while stop > self.token_starts[i + 1]:
            parts[-1] = parts[-1][parts[-1] < self.token_starts[i + 1]]  # without the end
            i += 1
            first = self.token_starts[i]
            parts.append(_starts(self.files[i].offsets(self.side), 0, stop - first) + first)
        return _concatenate(parts, np.dtype(np.int64))

    def search(self, position: int, side: Any) -> int:
        """Returns what `searchsorted` of all offsets returns."""
        i = min(bisect.bisect_right(self.token_starts, position), len(self.files)) - 1
        if i < 0:
            return int(np.zeros(1, np.int64).searchsorted(position, side))
        local = self.files[i].offsets(self.side).searchsorted(position - self.token_starts[i], side)
        return self.document_starts[i] + int(local)


def _concatenate(parts: list[np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])


class FileTokens:
    """The tokens [start, stop) of several files, or whether they are targets, read by slices as from an array."""

    def __init__(self, files: _Files, start: int, stop: int, kind: Kind = "tokens"):
        self._files, self._start, self._stop, self._kind = files, start, stop, kind
        self.dtype = files.dtypes[kind]

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, item: slice) -> np.ndarray:
        start, stop, _ = item.indices(len(self))
        return self._files.values(self._kind, self._start + start, self._start + max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def part(self, start: int, stop: int) -> "FileTokens":
        """Returns the tokens [start, stop) without reading them."""
        return FileTokens(self._files, self._start + start, self._start + stop, self._kind)


class FileOffsets:
    """The offsets of the documents [first, last) of several files, read as from an array."""

    def __init__(self, files: _Files, first: int, last: int):
        self._files, self._first, self._last = files, first, last
        self._base = int(files.offsets(first, first + 1)[0]) if first else 0

    def __len__(self) -> int:
        return self._last - self._first + 1

    def __getitem__(self, item: int | slice) -> Any:
        if not isinstance(item, slice):
            i = int(item) + len(self) if item < 0 else int(item)
            return self[i : i + 1][0]
        first, last, _ = item.indices(len(self))
        return self._files.offsets(self._first + first, self._first + last) - self._base

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Returns what `Shard.starts` returns."""
        return self._files.starts(start + self._base, stop + self._base) - self._base

    def searchsorted(self, position: int, side: Any = "left", sorter: None = None) -> int:
        """Returns where a position would have to be inserted, as NumPy does."""
        del sorter
        found = self._files.search(int(position) + self._base, side) - self._first
        return min(max(found, 0), len(self))

    def part(self, first: int, last: int) -> "FileOffsets":
        """Returns the offsets of the documents [first, last)."""
        return FileOffsets(self._files, self._first + first, self._first + last)
