"""Reading of documents from .txt, .jsonl and .parquet files, plain or compressed."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from psann_jax.data.text_units import Unit, articles, chapters, paragraphs
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors

TEXT_FORMATS = (".txt", ".jsonl")
# Larger files are identified by size, time and both ends: a restart need not read a terabyte to find its shards.
_HASH_WHOLE_BELOW = 1 << 26
_END_BYTES = 1 << 20
# Files that stand for others: how they begin, and the command that fetches the others.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}

_Open = Callable[[Path], BinaryIO]


def _open_zst(path: Path) -> BinaryIO:
    # The `zstandard` package does not detect that a file is truncated; Arrow's reader raises.
    return cast(BinaryIO, io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="zstd"))))


# Extension of a compressed file -> function that opens it for reading bytes.
_OPEN: dict[str, _Open] = {
    "": cast(_Open, functools.partial(open, mode="rb")),
    ".gz": cast(_Open, gzip.open),
    ".xz": cast(_Open, lzma.open),
    ".zst": _open_zst,
}


def split_extension(path: Path) -> tuple[str, str]:
    """Returns the format and the compression of a file, as its extensions.

    Returns:
      (".txt", ".jsonl" or ".parquet"; "", ".gz", ".xz" or ".zst").

    Raises:
      UserError: the extension is unknown.
    """
    compression = _compression(path)
    name = path.with_suffix("") if compression else path
    if name.suffix.lower() in TEXT_FORMATS:
        return name.suffix.lower(), compression
    if name.suffix.lower() == ".parquet" and not compression:
        return ".parquet", ""
    raise UserError(
        f"{path}: unknown file type; use .txt or .jsonl, plain or with .gz, .xz or .zst, or .parquet (not compressed)"
    )


def _compression(path: Path) -> str:
    return path.suffix.lower() if path.suffix.lower() in _OPEN else ""


def refuse_pointer(path: Path) -> None:
    """Raises UserError if a file is a broken link, or a placeholder of Git LFS or git-annex for the file itself."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a broken link to {os.readlink(path)}; remove or repair it")
    with read_errors(path), open(path, "rb") as file:
        head = file.read(max(map(len, _POINTERS)))
    for start, (tool, command) in _POINTERS.items():
        if head.startswith(start):
            raise UserError(f"{path}: is a {tool} pointer, not the file itself; fetch it with `{command}`")


def text_head(path: Path, n_bytes: int) -> str:
    r"""Returns the beginning of a .txt file, up to the last line end within `n_bytes`, or all of it if it is shorter.

    Line ends are kept. Bytes that are not UTF-8 are left out; reading the documents reports them.

    Raises:
      UserError: the file cannot be read.
    """
    with read_errors(path), _OPEN[_compression(path)](path) as file:
        data = file.read(n_bytes)
        is_whole = len(data) < n_bytes
    if not is_whole:
        data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1] or data
    return data.decode("utf-8-sig", errors="ignore")


def file_fingerprint(path: Path) -> str:
    """Returns a hash of a file's content; for files of 64 MiB and more, of its size, time and first and last MiB.

    Raises:
      UserError: the file cannot be read.
    """
    with read_errors(path), open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size < _HASH_WHOLE_BELOW:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(file.read(_END_BYTES))
        file.seek(-_END_BYTES, os.SEEK_END)
        digest.update(file.read())
        return digest.hexdigest()


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Converts the errors of reading a possibly compressed file to a UserError that names it.

    Raises:
      UserError: instead of an OSError or an error of the decompressor.
    """
    with storage_errors(path, "read"):
        try:
            yield
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError) as e:
            raise OSError(str(e) or type(e).__name__) from e
        except OSError as e:
            if "requires too much memory" not in str(e):  # Arrow's limit is that of the zstd command
                raise
            hint = "decompress it with zstd -d --long=31, or compress it again with --long=27 or less"
            raise UserError(f"{path}: its zstd window is larger than 128 MiB; {hint}") from e


def read_documents(path: Path, document: Unit, text_field: str) -> Iterator[str]:
    """Yields the documents of a file in order, without blank ones.

    Args:
      path: a file with an extension that `split_extension` accepts.
      document: what one document of a .txt file is; with "article", records are lines of articles, too.
      text_field: the key or column of .jsonl and .parquet records that holds the text.

    Raises:
      UserError: the file cannot be read or is not UTF-8, or a record has no such field.
    """
    kind, compression = split_extension(path)
    with read_errors(path):
        if kind == ".txt":
            texts = _txt(path, compression, document)
        else:
            texts = _parquet(path, text_field) if kind == ".parquet" else _jsonl(path, compression, text_field)
            if document == "article":
                texts = record_articles(texts, str(path))
        for text in texts:
            if text and not text.isspace():
                yield text


def record_articles(texts: Iterable[str], where: str) -> Iterator[str]:
    """Yields the articles of a text in the format of WikiText whose lines are records, see `articles`."""
    lines = (line for text in texts for line in text.removesuffix("\n").split("\n"))
    return articles(lines, where)


def _txt(path: Path, compression: str, document: Unit) -> Iterator[str]:
    if document == "file":
        return _whole_file(path, compression)
    lines = (text for _, text in _lines(path, compression))
    if document in ("article", "heading"):
        return (articles if document == "article" else chapters)(lines, str(path))
    return paragraphs(lines) if document == "paragraph" else lines


def csv_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Returns the lines of a .csv file, plain or compressed, as (line number from 1, line without its end).

    Iterate over them within `read_errors`, which names the file when it cannot be read.

    Raises:
      UserError: the extension is unknown or the file is not UTF-8.
    """
    compression = _compression(path)
    if not path.name.lower().endswith(f".csv{compression}"):
        raise UserError(f"{path}: unknown file type; use .csv, plain or with .gz, .xz or .zst")
    return _lines(path, compression)


def _lines(path: Path, compression: str) -> Iterator[tuple[int, str]]:
    r"""Yields (line number from 1, line without its end) of a UTF-8 file.

    Lines end with "\n" or "\r\n", or with "\r" in a file that has no "\n".
    """
    offset = 0
    with _OPEN[compression](path) as file:
        for number, line in enumerate(file, 1):
            text = _decode(line, path, offset, number)
            offset += len(line)
            if number == 1 and not text.endswith("\n"):  # the whole file
                yield from enumerate(text.removesuffix("\r").split("\r"), 1)
            else:
                yield number, text.rstrip("\r\n")


def _whole_file(path: Path, compression: str) -> Iterator[str]:
    with _OPEN[compression](path) as file:
        yield _decode(file.read(), path, 0, 1).replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes, path: Path, offset: int, line: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line += data.count(b"\n", 0, e.start)
        raise UserError(
            f"{path}: byte 0x{data[e.start]:02x} at offset {offset + e.start} (line {line}) is not UTF-8; "
            "convert the file to UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if offset == 0 else text


def _jsonl(path: Path, compression: str, text_field: str) -> Iterator[str]:
    for number, line in _lines(path, compression):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:  # ValueError: also a number of more digits than Python converts
            raise UserError(f"{where} is not JSON: {e}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object with the field {text_field!r}")
        text = record_text(record, text_field, where)
        if not is_unicode(text):
            raise UserError(f"{where}: {text_field!r} has an unpaired surrogate, which is not a character")
        yield text


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            record_text(dict.fromkeys(names), text_field, str(path))
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            for value in _as_bytes(batch.column(0)).to_pylist():
                yield record_text({text_field: value}, text_field, f"{path}: row {row}")
                row += 1


def _as_bytes(column: pa.Array) -> pa.Array:
    """Returns strings as bytes, so that `record_text` can report the row whose bytes are not UTF-8."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column.cast(pa.binary()) if pa.types.is_string(column.type) else column


def record_text(record: dict[str, Any], text_field: str, where: str) -> str:
    """Returns the text of a record, "" if it is null.

    Args:
      record: field names -> values.
      text_field: the field that holds the text, a string or UTF-8 bytes.
      where: the file and line, for error messages.

    Raises:
      UserError: the record has no such field, or the field does not hold text.
    """
    if text_field not in record:
        raise UserError(
            f"data.text_field: {where} has no field {text_field!r}; it has {', '.join(map(repr, record)) or 'none'}"
        )
    value = record[text_field]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as e:
            raise UserError(
                f"{where}: byte 0x{value[e.start]:02x} at offset {e.start} of {text_field!r} is not UTF-8"
            ) from None
    if value is not None and not isinstance(value, str):
        raise UserError(f"data.text_field: {where}: {text_field!r} holds {type(value).__name__}, not text")
    return value or ""


def is_unicode(text: str) -> bool:
    """Returns whether a text can be encoded; JSON and Python strings may have unpaired surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
