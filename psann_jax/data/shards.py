"""Token shards: a text that is tokenised once and then read by position."""

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
from psann_jax.data.corpus import Corpus
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError

_FORMAT = 1
# What is encoded at once: the tokenizers library takes over 100 bytes of memory for each byte of it.
_BATCH_CHARACTERS = 1 << 21
_COUNTS, _CHECKSUMS = "counts.json", "crc32"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Documents ``[bos] ids [eos]`` one after another.

    Attributes:
      tokens_N: ids, uint16 or uint32, mapped from disk.
      offsets: where each document begins, and at the end the number of tokens; int64, (documents + 1,).
      text_bytes: length of the documents' text in UTF-8.
    """

    tokens_N: np.ndarray
    offsets: np.ndarray
    text_bytes: int

    @property
    def n_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    def documents(self, first: int, last: int) -> "Shard":
        """The documents [first, last); their text bytes are not known."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return Shard(self.tokens_N[start:end], self.offsets[first : last + 1] - start, 0)


@dataclass(frozen=True)
class Prepared:
    """The shards of a corpus.

    Attributes:
      train: documents of all sources, source after source.
      valid: validation documents.
      source_documents: training documents of each source.
      fingerprint: changes with the text, its division and the tokenizer.
    """

    train: Shard
    valid: Shard
    source_documents: tuple[int, ...]
    fingerprint: str


def prepare(corpus: Corpus, tokenizer: Tokenizer, root: Path, progress: bool = True) -> Prepared:
    """Tokenises a corpus, or finds the shards of an earlier time.

    What is found is read as a whole and compared with its checksums, at every start of every process: a changed byte
    would train another model without a word. At 2 bytes a token that is 0.7 s for a thousand million tokens that are
    in memory (3 GB/s on one core of an AMD EPYC), and the time of reading them once where they are not, which
    training spares later. Damaged shards are made again. Those of versions without checksums are checked for their
    length alone.

    Args:
      corpus: the text.
      tokenizer: whose ids are stored.
      root: the cache.
      progress: whether this process prints.

    Raises:
      UserError: the text cannot be read or the cache not written, or its files change meanwhile.
    """
    key = key_of(_FORMAT, corpus.fingerprint, tokenizer.fingerprint)
    path = get_or_make(root, f"shards-{key}", lambda empty: _write(empty, corpus, tokenizer), progress, _find_damage)
    try:
        return _open(path, key)
    except _DAMAGE as e:
        raise UserError(f"{path}: the prepared text is damaged ({e}); delete this directory") from e


def _write(directory: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    source_documents = [0] * len(corpus.sources)
    with _Writer(directory, "train", dtype) as train, _Writer(directory, "valid", dtype) as valid:
        for batch in _batches(corpus):
            ids = tokenizer.encode_batch([text for _, _, text in batch])
            for (source, is_valid, text), text_ids in zip(batch, ids, strict=True):
                (valid if is_valid else train).add([tokenizer.bos_id, *text_ids, tokenizer.eos_id], text)
                if not is_valid:
                    source_documents[source] += 1
    counts = {"train": train.counts(), "valid": valid.counts(), "source_documents": source_documents}
    checksums = {path.name: _crc32(path) for path in sorted(directory.iterdir())} | {_COUNTS: _crc32_of(counts)}
    (directory / _COUNTS).write_text(json.dumps({**counts, _CHECKSUMS: checksums}))


def _batches(corpus: Corpus) -> Iterator[list[tuple[int, bool, str]]]:
    batch: list[tuple[int, bool, str]] = []
    size = 0
    for document in corpus.documents("tokenising"):
        batch.append(document)
        size += len(document[2])
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
        documents = len(self._offsets) - 1
        return {
            "dtype": np.dtype(self._dtype).name,
            "tokens": self._offsets[-1],
            "documents": documents,
            "text_bytes": self._text_bytes,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            np.save(self._directory / f"{self._name}.offsets.npy", np.array(self._offsets, np.int64))


# What reading damaged files raises.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _find_damage(path: Path) -> str | None:
    """What is wrong with the shards in a directory; None if they are as they were written."""
    try:
        _open(path, "")
        counts = json.loads((path / _COUNTS).read_text(encoding="utf-8"))
        checksums = counts.pop(_CHECKSUMS, None)
        if checksums is None and counts.keys() == {"train", "valid", "source_documents"}:
            return None  # of an older version
        for name, crc32 in checksums.items():
            if crc32 != (_crc32_of(counts) if name == _COUNTS else _crc32(path / name)):
                return f"{name}: its checksum differs"
    except OSError as e:
        return f"{Path(e.filename).name if e.filename else path.name}: {e.strerror or e}"
    except _DAMAGE as e:
        return " ".join(str(e).split()) or type(e).__name__
    return None


def _crc32_of(counts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(counts).encode())


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _open(path: Path, key: str) -> Prepared:
    counts = json.loads((path / _COUNTS).read_text(encoding="utf-8"))
    train, valid = (_open_shard(path, name, counts[name]) for name in ("train", "valid"))
    return Prepared(train, valid, tuple(counts["source_documents"]), key)


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
