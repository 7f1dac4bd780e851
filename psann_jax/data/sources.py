"""Sources of text: a short string names a source of documents.

  builtin:python                 help topics and module sources of the running Python's standard library
  PATH or GLOB                   .txt (one document per line or per file, see `data.document`), .jsonl, .parquet;
                                 .txt and .jsonl also compressed: .gz, .xz or .zst
  tfds:NAME[/CONFIG][:VERSION][@SPLIT]   TensorFlow Datasets, read without TensorFlow (array_record files); also
                                 tfds:DIRECTORY of a prepared version
  hf:ORG/NAME[/CONFIG][@SPLIT]   the Hugging Face `datasets` library; also hf:DIRECTORY[/CONFIG] of local files

SPLIT defaults to `train`; name a validation split in `data.valid_sources`. The order of documents is stable.
"""

import glob
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psann_jax.config import DataConfig
from psann_jax.data import builtin, files
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra

_DIRECTORY = ("/", ".", "~")  # first character of a directory's name, which tells it from the name of a data set


@dataclass(frozen=True)
class Source:
    """A sequence of documents that can be read any number of times.

    Attributes:
      name: the string that names the source.
      fingerprint: a hash that changes with the documents.
      documents: returns a new iterator over the documents; reading may raise UserError.
      settings: which of the settings `document` and `text_field` affect the documents.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]
    settings: frozenset[str] = frozenset()


def open_source(spec: str, config: DataConfig, field: str = "data.sources") -> Source:
    """Returns the source that `spec` names; the module docstring lists the forms.

    Args:
      spec: the name of the source.
      config: its `document` and `text_field` are used.
      field: the setting to name in error messages.

    Raises:
      UserError: there is no such source, or a library that it needs is not installed.
    """
    kind, colon, name = spec.partition(":")
    if colon and kind == "builtin":
        return _builtin(name, field)
    if colon and kind == "tfds":
        return _tfds(spec, name, config.text_field, field)
    if colon and kind == "hf":
        return _hugging_face(spec, name, config.text_field, field)
    return _files(spec, config, field)


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _builtin(name: str, field: str) -> Source:
    if name != "python":
        raise UserError(f"{field}: unknown built-in text {name!r}; the only one is builtin:python")
    digest = hashlib.sha256(platform.python_version().encode())
    for text in builtin.python_documents():
        digest.update(f"\0{len(text)}\0{text}".encode())
    return Source("builtin:python", digest.hexdigest(), builtin.python_documents)


def _files(spec: str, config: DataConfig, field: str) -> Source:
    path = Path(spec).expanduser()
    if path.is_dir():
        raise UserError(f"{field}: {spec} is a directory; name its files with a glob such as {spec.rstrip('/')}/*.txt")
    exists = path.exists()
    paths = [path] if exists else sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not paths:
        problem = "no file matches" if glob.has_magic(spec) else "there is no file"
        raise UserError(f"{field}: {problem} {spec!r}; other forms are builtin:python, tfds:NAME and hf:ORG/NAME")
    kinds = [files.split_extension(p) for p in paths]
    if exists and path.stat().st_size == 0:
        raise UserError(f"{path}: is empty")

    def documents() -> Iterator[str]:
        for p in paths:
            yield from files.read_documents(p, config.document, config.text_field)

    contents = [(kind, files.file_fingerprint(p)) for kind, p in zip(kinds, paths, strict=True)]
    settings = {"document" if kind == ".txt" else "text_field" for kind, _ in kinds}
    fingerprint = _fingerprint([getattr(config, name) for name in sorted(settings)], contents)
    return Source(spec, fingerprint, documents, frozenset(settings))


def _tfds(spec: str, name: str, text_field: str, field: str) -> Source:
    require_extra(f"{field}: {spec}", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    name, split = _parse_split(name)
    try:
        if name.startswith(_DIRECTORY):
            records = tfds.builder_from_directory(Path(name).expanduser()).as_data_source(split)
        else:
            # Called without a directory or options, data_source chooses array_record, which needs no TensorFlow.
            records = tfds.data_source(name, split=split)
        info = records.dataset_info
        shards = [files.file_fingerprint(Path(part.filename)) for part in info.splits[split].file_instructions]
    except UserError:
        raise
    except Exception as e:  # tfds has no common base class for its errors
        raise _load_error(field, spec, e, "tfds:NAME[/CONFIG][:VERSION][@SPLIT]") from e

    def documents() -> Iterator[str]:
        return _records(spec, (records[i] for i in range(len(records))), text_field)

    fingerprint = _fingerprint(info.full_name, split, text_field, shards)
    return Source(spec, fingerprint, documents, frozenset({"text_field"}))


def _hugging_face(spec: str, name: str, text_field: str, field: str) -> Source:
    require_extra(f"{field}: {spec}", "datasets")
    import datasets

    name, split = _parse_split(name)
    dataset, config = _parse_config(name)
    try:
        records = datasets.load_dataset(dataset, config, split=split)
    except Exception as e:  # datasets has no common base class for its errors
        raise _load_error(field, spec, e, "hf:ORG/NAME[/CONFIG][@SPLIT]") from e
    arrow = [files.file_fingerprint(Path(file["filename"])) for file in records.cache_files]

    def documents() -> Iterator[str]:
        if text_field not in records.column_names:
            files.record_text(dict.fromkeys(records.column_names), text_field, spec)
        batches = records.select_columns([text_field]).iter(batch_size=1000)
        return _records(spec, ({text_field: text} for batch in batches for text in batch[text_field]), text_field)

    fingerprint = _fingerprint(split, text_field, records.num_rows, arrow)
    return Source(spec, fingerprint, documents, frozenset({"text_field"}))


def _parse_split(name: str) -> tuple[str, str]:
    """Returns the data set and the split in NAME[@SPLIT]."""
    rest, at, split = name.rpartition("@")
    return (rest, split) if at and split and "/" not in split else (name, "train")


def _parse_config(name: str) -> tuple[str, str | None]:
    """Returns the data set and the configuration in ORG/NAME[/CONFIG] or DIRECTORY[/CONFIG]."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if path.parent.is_dir() and name.startswith(_DIRECTORY):
        return str(path.parent), path.name
    parts = name.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _load_error(field: str, spec: str, e: Exception, form: str) -> UserError:
    reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
    return UserError(f"{field}: cannot load {spec} (the form is {form}): {reason}")


def _records(spec: str, records: Iterable[dict[str, Any]], text_field: str) -> Iterator[str]:
    for i, record in enumerate(records):
        text = files.record_text(record, text_field, f"{spec}: record {i}")
        if text and not text.isspace():
            yield text
