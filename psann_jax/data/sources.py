"""Sources of text: a short string names a source of documents.

  builtin:python                 help topics and module sources of the running Python's standard library
  PATH or GLOB                   .txt (one document per line, paragraph or file, see `data.document`), .jsonl,
                                 .parquet; .txt and .jsonl also compressed: .gz, .xz or .zst. s3://BUCKET/PATH and
                                 gs://BUCKET/PATH, also globs, are copied to the cache first
  tfds:NAME[/CONFIG][:VERSION][@SPLIT]   TensorFlow Datasets, read without TensorFlow (array_record files); also
                                 tfds:DIRECTORY of a prepared version
  hf:ORG/NAME[/CONFIG][@SPLIT]   the Hugging Face `datasets` library; also hf:DIRECTORY[/CONFIG] of local files or of
                                 `Dataset.save_to_disk`

SPLIT defaults to `train`; name a validation split in `data.valid_sources`. The order of documents is stable.
"""

import glob
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from psann_jax.config import DataConfig
from psann_jax.data import builtin, files
from psann_jax.data.cache import cache_root
from psann_jax.data.content import file_contents
from psann_jax.data.downloads import local_copies
from psann_jax.data.pieces import Part, Piece, file_pieces, record_pieces
from psann_jax.data.records import Records
from psann_jax.data.remote_files import is_web
from psann_jax.data.text_units import Unit, choose_unit, suggest_unit
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import given_path, storage_errors
from psann_jax.utils.locations import given_location

_HEADS, _HEADS_BYTES = 64, 1 << 20  # files whose beginning is read to choose the unit, and bytes of all of these
_NAMED_FILES = 32  # of a source; more files are not told apart in results
PIECE_BYTES = 1 << 26  # of input
_TFDS_FORM = "tfds:NAME[/CONFIG][:VERSION][@SPLIT]"
_DIRECTORY = ("/", ".", "~")  # first character of a directory's name, which tells it from the name of a data set


@dataclass(frozen=True)
class Source:
    """A sequence of documents that can be read any number of times.

    Attributes:
      name: the string that names the source.
      fingerprint: a hash that changes with the documents.
      pieces: cuts the source into pieces of about as many bytes; may raise UserError.
      files: names of its files if they are few, else the name of the source for each file; the source if it has none.
      settings: which of the settings `document` and `text_field` affect the documents; the latter stands for all that
        name fields of records.
      unit: what one document is in its .txt files, or, if it is an article, in its records; otherwise None.
      suggested: what may suit its .txt files better than the unit that `data.document=auto` chose.
    """

    name: str
    fingerprint: str
    pieces: Callable[[int], list[Piece]]
    files: tuple[str, ...]
    settings: frozenset[str] = frozenset()
    unit: Unit | None = None
    suggested: Unit | None = None

    def part_names(self) -> list[str]:
        """Returns the paths of its files, or the name of another source; may raise UserError."""
        return [part.name for piece in self.pieces(PIECE_BYTES) for part in piece.parts]

    def documents(self) -> Iterator[str]:
        """Yields the documents.

        Raises:
          UserError: the text cannot be read, or has changed since the source was opened.
        """
        for piece in self.pieces(PIECE_BYTES):
            for _, text in read_piece(piece):
                yield text


def read_piece(piece: Piece) -> Iterator[tuple[int, str]]:
    """Yields the documents of a piece, each with the index of its file in the source.

    Raises:
      UserError: the text cannot be read, or has changed since the source was opened.
    """
    for part in piece.parts:
        if part.kind == "file":
            texts = _read_file(part, piece)
        elif part.kind == "builtin":
            texts = builtin.python_documents()
        else:
            texts = _read_records(part, piece)
        for text in texts:
            yield part.file, text


def _read_file(part: Part, piece: Piece) -> Iterator[str]:
    path = Path(part.name)
    _refuse_change(path, part.stamp)
    yield from files.read_documents(path, piece.document, piece.records, part.start, part.stop)
    _refuse_change(path, part.stamp)


def _read_records(part: Part, piece: Piece) -> Iterator[str]:
    records = _opened[part.name] if part.name in _opened else _open_records(part.name, "data.sources")
    read = _tfds_texts if part.kind == "tfds" else _hugging_face_texts
    texts = read(part.name, records, piece.records, range(part.start, part.stop or 0))
    if piece.document == "article":
        return files.record_articles(texts, part.name)
    return (text for text in texts if text and not text.isspace())


def _refuse_change(path: Path, stamp: tuple[int, int] | None) -> None:
    with storage_errors(path, "read"):
        stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) != stamp:
        raise UserError(f"{path}: changed while it was read; start again")


def open_source(spec: str, config: DataConfig, field: str = "data.sources", progress: bool = False) -> Source:
    """Returns the source that `spec` names; the module docstring lists the forms.

    Args:
      spec: the name of the source.
      config: its `document`, the fields of records and `cache_dir` are used.
      field: the setting to name in error messages.
      progress: show progress on stderr if hashing the files takes long.

    Raises:
      UserError: there is no such source, or a library that it needs is not installed.
    """
    require_name(spec, field)
    kind, colon, name = spec.partition(":")
    if is_web(spec):
        raise UserError(f"{field}: {spec}: files of the web are read with data.stream=True only")
    if colon and kind == "builtin":
        return _builtin(name, field)
    if colon and kind == "tfds":
        return _tfds(spec, config, field, progress)
    if colon and kind == "hf":
        return _hugging_face(spec, config, field, progress)
    return _files(spec, config, field, progress)


def require_name(spec: str, field: str) -> None:
    """Raises UserError for a source without a name."""
    if not spec.strip():
        raise UserError(f"{field}: has an empty name; name a file, or another source")


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _builtin(name: str, field: str) -> Source:
    if name != "python":
        raise UserError(f"{field}: unknown built-in text {name!r}; the only one is builtin:python")
    digest, n_bytes = hashlib.sha256(platform.python_version().encode()), 0
    for text in builtin.python_documents():
        encoded = f"\0{len(text)}\0{text}".encode()
        digest.update(encoded)
        n_bytes += len(encoded)
    piece = Piece((Part("builtin", "builtin:python"),), "file", Records(), n_bytes)
    return Source("builtin:python", digest.hexdigest(), lambda _: [piece], ("builtin:python",))


def _files(spec: str, config: DataConfig, field: str, progress: bool) -> Source:
    named = _named_paths(spec, config, field, progress)
    paths = list(named.values())
    kinds = [files.split_extension(path) for path in paths]
    files.check_all(named)
    texts = [path for path, (kind, _) in zip(paths, kinds, strict=True) if kind == ".txt"]
    heads = _heads(texts)
    unit: Unit | None = None
    suggested: Unit | None = None
    if texts and config.document == "auto":
        unit, suggested = choose_unit(list(map(_unix, heads)), len(texts)), suggest_unit(list(map(_unix, heads)))
    elif texts or config.document == "article":
        unit = cast(Unit, config.document)

    found = file_contents(paths, cache_root(config.cache_dir), progress)

    def pieces(piece_bytes: int) -> list[Piece]:
        return file_pieces(paths, found, unit or "file", Records.of(config), piece_bytes)

    contents: list[Any] = [(kind, content.sha256) for kind, content in zip(kinds, found, strict=True)]
    if any("\r" in head and (unit == "file" or "\n" not in head) for head in heads):
        contents.append("line ends")  # version 0.1 kept these characters
    affected_by: dict[str, Any] = {"document": unit} if unit else {}
    if len(texts) < len(paths):
        affected_by["text_field"] = Records.of(config).identity
    fingerprint = _fingerprint([affected_by[name] for name in sorted(affected_by)], contents)
    names = tuple(named) if len(paths) <= _NAMED_FILES else (spec,) * len(paths)
    return Source(spec, fingerprint, pieces, names, frozenset(affected_by), unit, suggested)


def _named_paths(spec: str, config: DataConfig, field: str, progress: bool) -> dict[str, Path]:
    """Returns the files that a path, URL or glob names, sorted: name -> path, or copy of an object in a bucket."""
    location = given_location(spec, field)
    if isinstance(location, Path):
        return {str(path): path for path in matching_paths(spec, location, field)}
    copies = local_copies(location, cache_root(config.cache_dir), field, progress)
    if not copies:
        raise UserError(f"{field}: there is no object {spec}; name several with a glob such as s3://BUCKET/*.txt")
    return copies


def matching_paths(spec: str, path: Path, field: str) -> list[Path]:
    """Returns the files that a path or glob names, sorted.

    Raises:
      UserError: there are none, or they cannot be listed.
    """
    with storage_errors(spec, "read"):
        if path.is_dir():
            example = f"{spec.rstrip('/')}/*.txt"
            raise UserError(f"{field}: {spec} is a directory; name its files with a glob such as {example}")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise UserError(f"{field}: {spec} is not a regular file; write the text to a file first")
        if path.exists() or path.is_symlink():
            return [path]
        matching = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        paths = [p for p in matching if p.is_file() or (p.is_symlink() and not p.exists())]
    if not paths:
        problem = "no file matches" if glob.has_magic(spec) else "there is no file"
        names = [name.strip() for name in spec.split(",")]
        hint = f"; several sources are a tuple, {tuple(names)}" if len(names) > 1 else ""
        raise UserError(f"{field}: {problem} {spec!r}; other forms are builtin:python, tfds:NAME and hf:ORG/NAME{hint}")
    return paths


def _heads(texts: list[Path]) -> list[str]:
    """Returns the beginnings of .txt files, of evenly chosen ones if there are many."""
    n = min(len(texts), _HEADS)
    return [files.text_head(texts[i * len(texts) // n], _HEADS_BYTES // n) for i in range(n)]


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Data sets by the names of their sources, so that a process does not open one again for each piece.
_opened: dict[str, Any] = {}


def _open_records(spec: str, field: str) -> Any:
    """Returns a data set, opened anew.

    Raises:
      UserError: it cannot be loaded, or its library is not installed.
    """
    kind, _, name = spec.partition(":")
    _opened[spec] = (_open_tfds if kind == "tfds" else open_hugging_face)(spec, name, field)
    return _opened[spec]


def _open_tfds(spec: str, name: str, field: str) -> Any:
    require_extra(f"{field}: {spec}", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    name, split = _parse_split(name)
    try:
        if name.startswith(_DIRECTORY):
            return tfds.builder_from_directory(given_path(name, field)).as_data_source(split)
        # Called without a directory or options, data_source chooses array_record, which needs no TensorFlow.
        return tfds.data_source(name, split=split)
    except UserError:
        raise
    except Exception as e:  # tfds has no common base class for its errors
        raise _load_error(field, spec, e, _TFDS_FORM) from e


def _tfds(spec: str, config: DataConfig, field: str, progress: bool) -> Source:
    records = _open_records(spec, field)
    info, split = records.dataset_info, _parse_split(spec.partition(":")[2])[1]
    try:
        parts = [Path(part.filename) for part in info.splits[split].file_instructions]
        n_records = len(records)
    except Exception as e:  # as above
        raise _load_error(field, spec, e, _TFDS_FORM) from e
    shards = file_contents(parts, cache_root(config.cache_dir), progress)
    content = (info.full_name, split, Records.of(config).identity, [shard.sha256 for shard in shards])
    return _record_source(spec, content, n_records, sum(shard.size for shard in shards), config)


def _tfds_texts(spec: str, data: Any, records: Records, indices: range) -> Iterator[str]:
    return _texts(spec, ((i, data[i]) for i in indices), records)


def open_hugging_face(spec: str, name: str, field: str, streaming: bool = False) -> Any:
    """Returns a data set of the `datasets` library.

    Args:
      spec: the source.
      name: the part of it after "hf:".
      field: the setting that names the source.
      streaming: returns an `IterableDataset`, which is read while it is used; a data set on a disk is cut into shards
        of about `PIECE_BYTES`.

    Raises:
      UserError: it cannot be loaded, or the library is not installed.
    """
    require_extra(f"{field}: {spec}", "datasets")
    import datasets

    name, split = _parse_split(name)
    dataset, config = _parse_config(name, field)
    try:
        if _is_saved(Path(dataset)):
            saved = _load_saved(datasets.load_from_disk(dataset), split)
            n_shards = min(-(-saved.data.nbytes // PIECE_BYTES), saved.num_rows)
            return saved.to_iterable_dataset(max(n_shards, 1)) if streaming else saved
        return datasets.load_dataset(dataset, config, split=split, streaming=streaming)
    except Exception as e:  # datasets has no common base class for its errors
        raise _load_error(field, spec, e, "hf:ORG/NAME[/CONFIG][@SPLIT]") from e


def _hugging_face(spec: str, config: DataConfig, field: str, progress: bool) -> Source:
    records = _open_records(spec, field)
    split = _parse_split(spec.partition(":")[2])[1]
    paths = [Path(file["filename"]) for file in records.cache_files]
    arrow = [content.sha256 for content in file_contents(paths, cache_root(config.cache_dir), progress)]
    content = (split, Records.of(config).identity, records.num_rows, arrow)
    return _record_source(spec, content, records.num_rows, records.data.nbytes, config)


def _hugging_face_texts(spec: str, data: Any, records: Records, indices: range) -> Iterator[str]:
    records.missing(data.column_names, spec)
    columns = data.select_columns(list(records.names))
    batches = (columns[i : min(i + 1000, indices.stop)] for i in indices[::1000])
    rows = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    return _texts(spec, zip(indices, rows, strict=True), records)


def _record_source(spec: str, content: tuple[Any, ...], n_records: int, n_bytes: int, config: DataConfig) -> Source:
    """Returns a source of records; `content` identifies their texts."""
    part = Part("tfds" if spec.startswith("tfds:") else "hf", spec)
    unit: Unit | None = "article" if config.document == "article" else None

    def pieces(piece_bytes: int) -> list[Piece]:
        return record_pieces(part, n_records, n_bytes, unit or "file", Records.of(config), piece_bytes)

    fingerprint = _fingerprint(*content, unit) if unit else _fingerprint(*content)
    settings = frozenset({"text_field", "document"} if unit else {"text_field"})
    return Source(spec, fingerprint, pieces, (spec,), settings, unit)


def _is_saved(directory: Path) -> bool:
    """Returns whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a directory."""
    return any((directory / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _load_saved(saved: Any, split: str) -> Any:
    """Returns a split of what `datasets.load_from_disk` returned; a single data set is its own split or `train`."""
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved, "train": saved}
    if split not in splits:
        raise ValueError(f"it has no split {split!r}, only {', '.join(splits)}")
    return splits[split]


def _parse_split(name: str) -> tuple[str, str]:
    """Returns the data set and the split in NAME[@SPLIT]."""
    rest, at, split = name.rpartition("@")
    return (rest, split) if at and split and "/" not in split else (name, "train")


def _parse_config(name: str, field: str) -> tuple[str, str | None]:
    """Returns the data set and the configuration in ORG/NAME[/CONFIG] or DIRECTORY[/CONFIG]."""
    path = given_path(name, field)
    if path.is_dir():
        return str(path), None
    if path.parent.is_dir() and name.startswith(_DIRECTORY):
        return str(path.parent), path.name
    parts = name.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _load_error(field: str, spec: str, e: Exception, form: str) -> UserError:
    reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
    return UserError(f"{field}: cannot load {spec} (the form is {form}): {reason}")


def _texts(spec: str, data: Iterable[tuple[int, dict[str, Any]]], records: Records) -> Iterator[str]:
    for i, record in data:
        yield records.document(record, f"{spec}: record {i}")
