"""Token shards: text that is tokenised once and then read from disk by position."""

import json
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from psann_jax.data.cache import get_or_make, key_of
from psann_jax.data.corpus import Corpus, Document
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.checksums import file_crc32
from psann_jax.utils.errors import UserError

_FORMAT = 1
# Characters that are encoded together: the tokenizers library needs over 100 bytes of memory for each byte of text.
_BATCH_CHARACTERS = 1 << 21
_COUNTS, _CHECKSUMS = "counts.json", "crc32"


@dataclass(frozen=True)
class Shard:
    """Documents ``[bos] ids [eos]``, one after another.

    Attributes:
      tokens_N: token ids, uint16 or uint32, memory-mapped.
      offsets: position of the first token of each document, then the number of tokens; int64, (documents + 1,).
      text_bytes: length of the text of all documents in bytes of UTF-8.
    """

    tokens_N: np.ndarray
    offsets: np.ndarray
    text_bytes: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including bos and eos."""
        return int(self.offsets[-1])

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def documents(self, first: int, last: int) -> "Shard":
        """Returns the documents [first, last) as a shard, with `text_bytes` 0."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return Shard(self.tokens_N[start:end], self.offsets[first : last + 1] - start, 0)


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


def prepare(corpus: Corpus, tokenizer: Tokenizer, root: Path, progress: bool = True) -> Prepared:
    """Tokenises a corpus, or finds its shards in the cache.

    Every process verifies the checksums of cached shards at every start, because a changed byte would silently train
    another model. At 2 bytes per token, this takes 0.7 s for 10^9 tokens that are in the page cache (3 GB/s on one core
    of an AMD EPYC). If they are not, it takes the time of one pass over the files, which training then saves. Damaged
    shards are rebuilt. Shards of versions without checksums are checked for their length only.

    Args:
      corpus: the text.
      tokenizer: encodes the text.
      root: the cache directory.
      progress: show progress on stderr.

    Raises:
      UserError: the text cannot be read, the cache cannot be written, or its files change while they are read.
    """
    key = key_of(_FORMAT, corpus.fingerprint, tokenizer.fingerprint)
    path = get_or_make(root, f"shards-{key}", lambda empty: _write(empty, corpus, tokenizer), progress, _find_damage)
    try:
        return _open(path, key)
    except _READ_ERRORS as e:
        raise UserError(f"{path}: the prepared text is damaged ({e}); delete this directory") from e


def _write(directory: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    source_documents = [0] * len(corpus.sources)
    valid_names: list[tuple[str, int]] = []
    with _Writer(directory, "train", dtype) as train, _Writer(directory, "valid", dtype) as valid:
        for batch in _batches(corpus):
            ids = tokenizer.encode_batch([document.text for document in batch])
            for document, text_ids in zip(batch, ids, strict=True):
                writer = valid if document.is_valid else train
                writer.add([tokenizer.bos_id, *text_ids, tokenizer.eos_id], document.text)
                if not document.is_valid:
                    source_documents[document.source] += 1
                elif valid_names and valid_names[-1][0] == document.part:
                    valid_names[-1] = document.part, valid_names[-1][1] + 1
                else:
                    valid_names.append((document.part, 1))
    counts: dict[str, Any] = {"train": train.counts(), "valid": valid.counts(), "source_documents": source_documents}
    counts["valid_names"] = valid_names
    checksums = {path.name: file_crc32(path) for path in sorted(directory.iterdir())} | {_COUNTS: _crc32_of(counts)}
    (directory / _COUNTS).write_text(json.dumps({**counts, _CHECKSUMS: checksums}))


def _batches(corpus: Corpus) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in corpus.documents("tokenising"):
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Writes a shard: NAME.tokens and NAME.offsets.npy."""

    def __init__(self, directory: Path, name: str, dtype: type[np.unsignedinteger]):
        self._directory, self._name, self._dtype = directory, name, dtype
        self._offsets = array("q", [0])
        self._text_bytes = 0
        self._file = open(directory / f"{name}.tokens", "wb")  # noqa: SIM115

    def add(self, ids: list[int], text: str) -> None:
        self._file.write(np.array(ids, self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))
        self._text_bytes += len(text.encode())

    def counts(self) -> dict[str, str | int]:
        return {
            "dtype": np.dtype(self._dtype).name,
            "tokens": self._offsets[-1],
            "documents": len(self._offsets) - 1,
            "text_bytes": self._text_bytes,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            np.save(self._directory / f"{self._name}.offsets.npy", np.array(self._offsets, np.int64))


# Errors that reading damaged files can raise.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _find_damage(path: Path) -> str | None:
    """Returns what is wrong with the shards in a directory, or None if they are intact."""
    try:
        _open(path, "")
        counts = json.loads((path / _COUNTS).read_text(encoding="utf-8"))
        checksums = counts.pop(_CHECKSUMS, None)
        if checksums is None and counts.keys() == {"train", "valid", "source_documents"}:
            return None  # written by a version without checksums
        for name, crc32 in checksums.items():
            if crc32 != (_crc32_of(counts) if name == _COUNTS else file_crc32(path / name)):
                return f"{name}: its checksum differs"
    except OSError as e:
        return f"{Path(e.filename).name if e.filename else path.name}: {e.strerror or e}"
    except _READ_ERRORS as e:
        return " ".join(str(e).split()) or type(e).__name__
    return None


def _crc32_of(counts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(counts).encode())


def _open(path: Path, key: str) -> Prepared:
    counts = json.loads((path / _COUNTS).read_text(encoding="utf-8"))
    train, valid = (_open_shard(path, name, counts[name]) for name in ("train", "valid"))
    names = tuple((str(name), int(n)) for name, n in counts.get("valid_names", ()))
    return Prepared(train, valid, tuple(counts["source_documents"]), key, names)


def _open_shard(path: Path, name: str, counts: dict[str, Any]) -> Shard:
    tokens = path / f"{name}.tokens"
    dtype = np.dtype(counts["dtype"])
    if tokens.stat().st_size != counts["tokens"] * dtype.itemsize:
        raise ValueError(f"{tokens.name} has {tokens.stat().st_size} bytes for {counts['tokens']} tokens")
    tokens_N = np.asarray(np.memmap(tokens, dtype, "r"))
    offsets = np.asarray(np.load(path / f"{name}.offsets.npy", mmap_mode="r"))
    if len(offsets) != counts["documents"] + 1:
        raise ValueError(f"{name}.offsets.npy has {len(offsets)} entries for {counts['documents']} documents")
    return Shard(tokens_N, offsets, counts["text_bytes"])
