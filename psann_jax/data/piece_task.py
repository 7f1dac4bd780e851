"""Tokenises one piece of a corpus into shard files."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from psann_jax.data.corpus import CorpusPiece
from psann_jax.data.encoding import encode_documents
from psann_jax.data.shard_file import Documents, Header, read_header, write_shard_file
from psann_jax.data.sources import read_piece
from psann_jax.data.tokenizer import Tokenizer

# Characters that are encoded together: the tokenizers library needs over 100 bytes of memory for each byte of text.
_BATCH_CHARACTERS = 1 << 21

# Called with the bytes of text and the tokens since the last call.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class PieceTask:
    """All that preparing a piece needs; plain data, so that any process on any machine with the same files can do it.

    Attributes:
      number: of the piece in the corpus.
      piece: with its source and split.
      tokenizer: from `Tokenizer.to_bytes`.
      directory: for the shard files.
      shard_bytes: bytes of text after which a new file begins.
    """

    number: int
    piece: CorpusPiece
    tokenizer: bytes
    directory: Path
    shard_bytes: int

    def path(self, part: int) -> Path:
        """Returns the path of the file with the `part`-th documents of the piece."""
        return self.directory / f"{self.number:06d}-{part:04d}.shard"

    def written(self) -> list[Header]:
        """Returns the headers of the files that are there already, up to the first that is missing or damaged."""
        headers = (read_header(self.path(part)) for part in itertools.count())
        return list(itertools.takewhile(lambda header: header is not None, headers))  # type: ignore[arg-type]

    def is_done(self) -> bool:
        """Returns whether all files of the piece are there."""
        written = self.written()
        return bool(written) and written[-1].is_last


def prepare_piece(task: PieceTask, report: Report = lambda n_bytes, n_tokens: None) -> None:
    """Writes the files of a piece that are missing, one after another.

    The documents of files that are there are read again, but not tokenised again. The content of the files does not
    depend on interruptions.

    Args:
      task: what to do.
      report: is called after each batch of documents.

    Raises:
      UserError: the text cannot be read, or has changed since the source was opened.
      OSError: a file cannot be written.
    """
    written = task.written()
    tokenizer = _tokenizer(task.tokenizer)
    documents = read_piece(task.piece.piece)
    for header in written:
        for _, text in itertools.islice(documents, header.n_documents):
            report(len(text.encode()), 0)
    part, is_last = len(written), bool(written) and written[-1].is_last
    following = next(documents, None)
    while not is_last:
        rest = itertools.chain(() if following is None else (following,), documents)
        train, valid = _tokenise(_first(rest, task.shard_bytes), task, tokenizer, report)
        following = next(documents, None)
        is_last = following is None
        write_shard_file(task.path(part), task.piece.source, is_last, train, valid)
        part += 1


@functools.lru_cache(maxsize=1)
def _tokenizer(data: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(data)


def _first(documents: Iterator[tuple[int, str]], n_bytes: int) -> Iterator[tuple[int, str, int]]:
    """Yields documents and their sizes in bytes, up to the one with which they have `n_bytes` bytes."""
    for file, text in documents:
        size = len(text.encode())
        yield file, text, size
        n_bytes -= size
        if n_bytes <= 0:
            return


def _tokenise(
    documents: Iterator[tuple[int, str, int]], task: PieceTask, tokenizer: Tokenizer, report: Report
) -> tuple[Documents, Documents]:
    """Returns the documents of both sides."""
    wide = tokenizer.vocab_size > 1 << 16
    train, valid = Documents(wide), Documents(wide)
    for batch in _batches(documents):
        n_tokens = 0
        encoded = encode_documents([text for _, text, _ in batch], tokenizer)
        for (file, text, size), document in zip(batch, encoded, strict=True):
            side = valid if task.piece.split.is_valid(text) else train
            side.add(document.ids, size, file, document.scored)
            n_tokens += len(document.ids)
        report(sum(size for _, _, size in batch), n_tokens)
    return train, valid


def _batches(documents: Iterator[tuple[int, str, int]]) -> Iterator[list[tuple[int, str, int]]]:
    batch: list[tuple[int, str, int]] = []
    n_characters = 0
    for document in documents:
        batch.append(document)
        n_characters += len(document[1])
        if n_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
