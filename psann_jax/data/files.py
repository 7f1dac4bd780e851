"""Reading of documents from .txt, .jsonl and .parquet files, plain or compressed."""

import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from psann_jax.data.records import Records, is_unicode
from psann_jax.data.remote_files import RemoteFile
from psann_jax.data.text_units import Unit, articles, chapters, paragraphs
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import storage_errors

TEXT_FORMATS = (".txt", ".jsonl")
_BLOCK = 1 << 20
# Files that stand for others: how they begin, and the command that fetches the others.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}

File = Path | RemoteFile
_Open = Callable[[Path | BinaryIO], BinaryIO]


def _open_zst(file: Path | BinaryIO) -> BinaryIO:
    # The `zstandard` package does not detect that a file is truncated; Arrow's reader raises.
    source = str(file) if isinstance(file, Path) else file
    return cast(BinaryIO, io.BufferedReader(cast(Any, pa.input_stream(source, compression="zstd"))))


# Extension of a compressed file -> function that opens it for reading bytes.
_OPEN: dict[str, _Open] = {
    "": cast(_Open, functools.partial(open, mode="rb")),
    ".gz": cast(_Open, gzip.open),
    ".xz": cast(_Open, lzma.open),
    ".zst": _open_zst,
}


@contextlib.contextmanager
def _opened(file: File, compression: str) -> Iterator[BinaryIO]:
    """Opens a file for reading its bytes, decompressed."""
    with contextlib.ExitStack() as stack:
        source: Path | BinaryIO = file if isinstance(file, Path) else stack.enter_context(file.open())
        if _is_empty(file):  # it does not even have the header of its format
            compression = ""
        if compression or isinstance(source, Path):
            source = stack.enter_context(_OPEN[compression](source))
        yield source


def _is_empty(file: File) -> bool:
    return isinstance(file, Path) and not file.stat().st_size


def split_extension(path: File) -> tuple[str, str]:
    """Returns the format and the compression of a file, as its extensions.

    Returns:
      (".txt", ".jsonl" or ".parquet"; "", ".gz", ".xz" or ".zst").

    Raises:
      UserError: the extension is unknown.
    """
    pure: PurePath = path if isinstance(path, Path) else path.path
    compression = _compression(pure)
    name = pure.with_suffix("") if compression else pure
    if name.suffix.lower() in TEXT_FORMATS:
        return name.suffix.lower(), compression
    if name.suffix.lower() == ".parquet" and not compression:
        return ".parquet", ""
    raise UserError(
        f"{path}: unknown file type; use .txt or .jsonl, plain or with .gz, .xz or .zst, or .parquet (not compressed)"
    )


def _compression(path: PurePath) -> str:
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


def check_all(paths: Mapping[str, Path]) -> None:
    """Warns of empty files among several.

    Args:
      paths: by the names that messages use.

    Raises:
      UserError: the only file is empty; or see `refuse_pointer`.
    """
    for name, path in paths.items():
        refuse_pointer(path)
        if _is_empty(path):
            if len(paths) == 1:
                raise UserError(f"{name}: is empty")
            print(f"warning: {name}: is empty", file=sys.stderr)


def text_head(path: Path, n_bytes: int) -> str:
    r"""Returns the beginning of a .txt file, up to the last line end within `n_bytes`, or all of it if it is shorter.

    Line ends are kept. Bytes that are not UTF-8 are left out; reading the documents reports them.

    Raises:
      UserError: the file cannot be read.
    """
    with read_errors(path), _opened(path, _compression(path)) as file:
        data = file.read(n_bytes)
        is_whole = len(data) < n_bytes
    if not is_whole:
        data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1] or data
    return data.decode("utf-8-sig", errors="ignore")


@contextlib.contextmanager
def read_errors(path: File) -> Iterator[None]:
    """Converts the errors of reading a possibly compressed file to a UserError that names it.

    Raises:
      UserError: instead of an OSError or an error of the decompressor.
    """
    with storage_errors(str(path), "read"):
        try:
            yield
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError) as e:
            raise OSError(str(e) or type(e).__name__) from e
        except OSError as e:
            if "requires too much memory" not in str(e):  # Arrow's limit is that of the zstd command
                raise
            hint = "decompress it with zstd -d --long=31, or compress it again with --long=27 or less"
            raise UserError(f"{path}: its zstd window is larger than 128 MiB; {hint}") from e


def read_documents(
    path: File, document: Unit, records: Records, start: int = 0, stop: int | None = None
) -> Iterator[str]:
    """Yields the documents of a file, or of a range of it, in order, without blank ones.

    Ranges that follow each other give the documents of the whole file: a document belongs to the range in which it
    starts.

    Args:
      path: a file with an extension that `split_extension` accepts.
      document: what one document of a .txt file is; with "article", records are lines of articles, too.
      records: which keys or columns of .jsonl and .parquet records are the document.
      start: first byte of the range, or first row group of a .parquet file; above 0 only if `has_ranges`.
      stop: end of the range; None: the end of the file.

    Raises:
      UserError: the file cannot be read or is not UTF-8, or a record has no such field.
    """
    kind, compression = split_extension(path)
    with read_errors(path):
        if kind == ".txt":
            texts = _txt(path, compression, document, start, stop)
        elif kind == ".parquet":
            texts = _parquet(path, records, start, stop)
        else:
            texts = _jsonl(path, compression, records, start, stop)
        if kind != ".txt" and document == "article":
            texts = record_articles(texts, str(path))
        for text in texts:
            if text and not text.isspace():
                yield text


def _txt(path: File, compression: str, document: Unit, start: int, stop: int | None) -> Iterator[str]:
    if document == "file":
        return _whole_file(path, compression)
    if document == "paragraph":
        return paragraphs(_paragraph_lines(path, compression, start, stop))
    lines = (line.text for line in _lines(path, compression, start, stop))
    if document == "line":
        return lines
    return (articles if document == "article" else chapters)(lines, str(path))


def record_articles(texts: Iterable[str], where: str) -> Iterator[str]:
    """Yields the articles of a text in the format of WikiText whose lines are records, see `articles`."""
    lines = (line for text in texts for line in text.removesuffix("\n").split("\n"))
    return articles(lines, where)


def has_ranges(path: Path, document: Unit) -> bool:
    """Returns whether `read_documents` can read ranges of a file: bytes, or row groups of a .parquet file.

    Raises:
      UserError: the file cannot be read.
    """
    kind, compression = split_extension(path)
    if compression or document == "article" or (kind == ".txt" and document not in ("line", "paragraph")):
        return False
    if kind == ".parquet":
        return True
    with read_errors(path), open(path, "rb") as file:
        return b"\n" in file.read(_BLOCK)  # else "\r" may end its lines


def csv_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Returns the lines of a .csv file, plain or compressed, as (line number from 1, line without its end).

    Iterate over them within `read_errors`, which names the file when it cannot be read.

    Raises:
      UserError: the extension is unknown or the file is not UTF-8.
    """
    compression = _compression(path)
    if not path.name.lower().endswith(f".csv{compression}"):
        raise UserError(f"{path}: unknown file type; use .csv, plain or with .gz, .xz or .zst")
    return ((line.number, line.text) for line in _lines(path, compression))


class _Line(NamedTuple):
    """A line without its end, the offset of its first byte, and its number from 1, or 0 if the number is unknown."""

    offset: int
    number: int
    text: str


def _lines(path: File, compression: str, start: int = 0, stop: int | None = None) -> Iterator[_Line]:
    r"""Yields the lines of a UTF-8 file that start in a byte range.

    Lines end with "\n" or "\r\n", or with "\r" in a file that has no "\n".
    """
    with _opened(path, compression) as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the end of a line that starts before the range
        offset = file.tell() if start else 0
        for index, line in enumerate(file, 1):
            if stop is not None and offset >= stop:
                return
            number = 0 if start else index
            text = _decode(line, _Place(path, offset, number))
            if number == 1 and not text.endswith("\n"):  # the whole file
                yield from (_Line(0, i, part) for i, part in enumerate(text.removesuffix("\r").split("\r"), 1))
            else:
                yield _Line(offset, number, text.rstrip("\r\n"))
            offset += len(line)


def _paragraph_lines(path: File, compression: str, start: int, stop: int | None) -> Iterator[str]:
    """Yields the lines of the paragraphs that start in a byte range."""
    in_text = in_earlier = start > 0 and _follows_text(path, start)
    for line in _lines(path, compression, start):
        is_text = bool(line.text.strip())
        in_earlier = in_earlier and is_text
        if stop is not None and line.offset >= stop and not (is_text and in_text):
            return
        in_text = is_text
        if not in_earlier:
            yield line.text
        elif stop is not None and line.offset >= stop:
            return  # a paragraph that starts before the range and ends after it


def _follows_text(path: File, start: int) -> bool:
    """Returns whether the line before the first one that starts at `start` or later is not blank."""
    with _opened(path, "") as file:
        file.seek(start - 1)
        file.readline()
        end, size = file.tell(), _BLOCK
        while True:
            file.seek(max(end - size, 0))
            before = file.read(end - file.tell()).removesuffix(b"\n")
            line = before[before.rfind(b"\n") + 1 :]
            # Only the first line of a file may begin with a byte order mark.
            encoding = "utf-8-sig" if size >= end and len(line) == len(before) else "utf-8"
            is_text = bool(line.decode(encoding, errors="ignore").strip())
            if is_text or size >= end or len(line) < len(before):
                return is_text
            size *= 2


@dataclass(frozen=True)
class _Place:
    """A line of a file, for error messages. Lines before a range are counted only when there is a message."""

    path: File
    offset: int
    number: int

    def line(self) -> int:
        """Returns the number of the line from 1."""
        if self.number:
            return self.number
        with _opened(self.path, "") as file:
            sizes = [_BLOCK] * (self.offset // _BLOCK) + [self.offset % _BLOCK]
            return 1 + sum(file.read(size).count(b"\n") for size in sizes)

    def __str__(self) -> str:
        return f"{self.path}: line {self.line()}"


def _whole_file(path: File, compression: str) -> Iterator[str]:
    with _opened(path, compression) as file:
        yield _decode(file.read(), _Place(path, 0, 1)).replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes, place: _Place) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = place.line() + data.count(b"\n", 0, e.start)
        raise UserError(
            f"{place.path}: byte 0x{data[e.start]:02x} at offset {place.offset + e.start} (line {line}) is not UTF-8; "
            "convert the file to UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if place.offset == 0 else text


def _jsonl(path: File, compression: str, records: Records, start: int, stop: int | None) -> Iterator[str]:
    for offset, number, line in _lines(path, compression, start, stop):
        if not line.strip():
            continue
        where = _Place(path, offset, number)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:  # ValueError: also a number of more digits than Python converts
            raise UserError(f"{where} is not JSON: {e}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object with the field {records.names[0]!r}")
        text = records.document(record, where)
        if not is_unicode(text):
            raise UserError(f"{where}: {records.names[-1]!r} has an unpaired surrogate, which is not a character")
        yield text


def row_group_sizes(path: Path) -> list[int]:
    """Returns the bytes of the values of each row group of a .parquet file.

    Raises:
      UserError: the file cannot be read.
    """
    with read_errors(path), pq.ParquetFile(path) as file:
        return [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]


def _parquet(path: File, records: Records, start: int, stop: int | None) -> Iterator[str]:
    if _is_empty(path):
        return
    names = records.names
    # Arrow opens a path itself, which is faster than through Python.
    source = contextlib.nullcontext(path) if isinstance(path, Path) else path.open()
    with source as data, pq.ParquetFile(data) as file:
        records.missing(file.schema_arrow.names, path)
        groups = range(start, file.num_row_groups if stop is None else stop)
        row = sum(file.metadata.row_group(i).num_rows for i in range(start))
        for batch in file.iter_batches(batch_size=1024, columns=list(names), row_groups=groups):
            for values in zip(*(_as_bytes(batch.column(name)).to_pylist() for name in names), strict=True):
                yield records.document(dict(zip(names, values, strict=True)), f"{path}: row {row}")
                row += 1


def _as_bytes(column: pa.Array) -> pa.Array:
    """Returns strings as bytes, so that `Records.document` can report the row whose bytes are not UTF-8."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column.cast(pa.binary()) if pa.types.is_string(column.type) else column
