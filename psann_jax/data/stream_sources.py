"""Sources of text that is read while a run trains, and never stored.

The forms are those of `psann_jax.data.sources` but builtin: and tfds:, and https:// files. A source consists of parts,
each of which is read from its beginning to its end: a range of a file on a disk, a file in a bucket or on the web, or a
shard of a data set.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from psann_jax.config import DataConfig, require
from psann_jax.data import files
from psann_jax.data.content import Content
from psann_jax.data.pieces import Piece, file_pieces
from psann_jax.data.records import Records
from psann_jax.data.remote_files import RemoteFile, bucket_file, is_web, web_file
from psann_jax.data.sources import PIECE_BYTES, matching_paths, open_hugging_face, read_piece, require_name
from psann_jax.data.text_units import Unit
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.errors import UserError, one_line
from psann_jax.utils.locations import BucketUrl, given_location


@dataclass(frozen=True)
class StreamPart:
    """A part of a source.

    Attributes:
      name: for messages: a path, a URL, or a shard of a data set.
      identity: what tells it from other parts, JSON-like: its name, and its size or version if they are known. Its
        content is not hashed, which would mean reading it.
      documents: yields its documents from the beginning; may raise UserError.
      stop: soon ends the reading in another thread, if that waits for the network; the part cannot be read again.
    """

    name: str
    identity: Any
    documents: Callable[[], Iterator[str]]
    stop: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class StreamSource:
    """A source of text that is read while a run trains.

    Attributes:
      name: the string that names the source.
      parts: in a stable order.
      settings: as in `psann_jax.data.sources.Source`.
      identity: how its documents are read, JSON-like.
    """

    name: str
    parts: tuple[StreamPart, ...]
    settings: frozenset[str]
    identity: Any


def open_stream(spec: str, config: DataConfig, field: str = "data.sources") -> StreamSource:
    """Returns the source that `spec` names; reads little more than the names and sizes of its files.

    Args:
      spec: the name of the source.
      config: its `document` and the fields of records are used.
      field: the setting to name in error messages.

    Raises:
      UserError: there is no such source, it cannot be streamed, or a library that it needs is not installed.
    """
    require_name(spec, field)
    kind, colon, name = spec.partition(":")
    if colon and kind in ("builtin", "tfds"):
        raise UserError(f"{field}: {spec} cannot be streamed; use files, URLs or hf:ORG/NAME, or data.stream=False")
    if colon and kind == "hf":
        return _hugging_face(spec, name, config, field)
    if is_web(spec):
        return _remote(spec, [_web(spec)], config)
    location = given_location(spec, field)
    if isinstance(location, BucketUrl):
        return _remote(spec, _objects(location, field), config)
    return _local(spec, matching_paths(spec, location, field), config)


def _source(name: str, parts: list[StreamPart], kinds: set[str], config: DataConfig) -> StreamSource:
    """Returns a source of files with these extensions, or ".records" of a data set."""
    settings = {"document"} if ".txt" in kinds or config.document == "article" else set()
    settings |= {"text_field"} if kinds - {".txt"} else set()
    return StreamSource(name, tuple(parts), frozenset(settings), [_unit(config), Records.of(config).identity])


def _unit(config: DataConfig) -> Unit:
    """Returns what one document of a .txt file is; of a config without .txt files, any unit but "article"."""
    return "file" if config.document == "auto" else cast(Unit, config.document)


def _kinds(names: list[Path] | list[RemoteFile], config: DataConfig) -> set[str]:
    """Returns the formats of files."""
    kinds = {files.split_extension(name)[0] for name in names}
    require(
        ".txt" not in kinds or config.document != "auto",
        "data.document",
        "is auto, which would have to read the .txt files ahead; with data.stream name what is one document: line, "
        "paragraph, file, article or heading",
    )
    return kinds


def _local(spec: str, paths: list[Path], config: DataConfig) -> StreamSource:
    kinds = _kinds(paths, config)
    parts = []
    files.check_all({str(path): path for path in paths})
    for path in paths:
        stat = path.stat()
        content = Content("", stat.st_size, stat.st_mtime_ns)
        for piece in file_pieces([path], [content], _unit(config), Records.of(config), PIECE_BYTES):
            (part,) = piece.parts
            identity = [str(path), stat.st_size, part.start, part.stop]
            parts.append(StreamPart(str(path), identity, functools.partial(_piece_texts, piece)))
    return _source(spec, parts, kinds, config)


def _piece_texts(piece: Piece) -> Iterator[str]:
    return (text for _, text in read_piece(piece))


def _objects(url: BucketUrl, field: str) -> list[tuple[RemoteFile, Any]]:
    """Returns the objects that a URL or a glob names, each with its version."""
    bucket = Bucket(url, field)
    root = Bucket(BucketUrl(url.scheme, url.path.partition("/")[0]), field)
    found: list[tuple[RemoteFile, Any]] = [
        (bucket_file(name, root, name.split("/", 3)[3], version), version)
        for name, version in bucket.matching().items()
    ]
    if not found:
        raise UserError(f"{field}: there is no object {url}; name several with a glob such as s3://BUCKET/*.txt")
    return found


def _web(url: str) -> tuple[RemoteFile, Any]:
    """Returns a file on the web and its size."""
    file = web_file(url)
    files.split_extension(file)
    with files.read_errors(file):
        file = file.fixed()
    return file, file.size


def _remote(spec: str, found: list[tuple[RemoteFile, Any]], config: DataConfig) -> StreamSource:
    """Returns a source of files, each with what tells its versions apart."""
    kinds = _kinds([file for file, _ in found], config)
    unit, records = _unit(config), Records.of(config)
    parts = []
    for file, version in found:
        documents = functools.partial(files.read_documents, file, unit, records)
        parts.append(StreamPart(str(file), [str(file), version], documents, file.stopped.set))
    return _source(spec, parts, kinds, config)


def _hugging_face(spec: str, name: str, config: DataConfig, field: str) -> StreamSource:
    data, records = open_hugging_face(spec, name, field, streaming=True), Records.of(config)
    if data.column_names:
        records.missing(data.column_names, spec)
        data = data.select_columns(list(records.names))
    n_shards = 1 if config.document == "article" else data.n_shards  # articles may go on in the next shard

    parts = []
    for i in range(n_shards):
        place = (spec, i, n_shards)
        documents = functools.partial(_shard_texts, data, place, config.document == "article", records)
        parts.append(StreamPart(spec if n_shards == 1 else f"{spec}: shard {i}", list(place), documents))
    return _source(spec, parts, {".records"}, config)


def _shard_texts(data: Any, place: tuple[str, int, int], is_article: bool, records: Records) -> Iterator[str]:
    """Yields the documents of a shard; `place` is the source, the shard and the number of shards."""
    import datasets.distributed

    spec, i, n_shards = place
    rows = _rows(datasets.distributed.split_dataset_by_node(data, i, n_shards), spec)
    texts: Iterator[str] = (records.document(row, f"{spec}: shard {i}: record {k}") for k, row in enumerate(rows))
    if is_article:
        texts = files.record_articles(texts, spec)
    return (text for text in texts if text and not text.isspace())


def _rows(data: Any, spec: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a data set; the library itself repeats requests that fail."""
    try:
        yield from data
    except Exception as error:  # datasets has no common base class for its errors
        raise UserError(f"{spec}: cannot be read: {one_line(error)}") from error
