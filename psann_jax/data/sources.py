"""Where text comes from: one short string names a source of documents.

  builtin:python                 help topics and module sources of the running Python's standard library
  PATH or GLOB                   .txt (a document a line, or a file: `data.document`), .jsonl, .parquet;
                                 .txt and .jsonl also as .gz, .xz or .zst
  tfds:NAME[/CONFIG][:VERSION][@SPLIT]   by TensorFlow Datasets, without TensorFlow (array_record files); also
                                 tfds:DIRECTORY of a prepared version
  hf:ORG/NAME[/CONFIG][@SPLIT]   by the Hugging Face `datasets` library; also hf:DIRECTORY[/CONFIG] of local files

SPLIT is `train` unless given; a validation split is named in `data.valid_sources`. The order of documents is stable.
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

_DIRECTORY = ("/", ".", "~")  # how the name of a directory begins, to tell it from a data set's


@dataclass(frozen=True)
class Source:
    """A text that can be read from its beginning any number of times.

    Attributes:
      name: the string that named it.
      fingerprint: changes with the documents.
      documents: returns a new iterator over the documents; reading may raise UserError.
      settings: those of `document` and `text_field` that decide the documents.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]
    settings: frozenset[str] = frozenset()


def open_source(spec: str, config: DataConfig, field: str = "data.sources") -> Source:
    """Finds the source that `spec` names; see the module's text for the forms.

    Args:
      spec: the string.
      config: gives `document` and `text_field`.
      field: the setting that an error message names.

    Raises:
      UserError: there is no such source, or a library that it needs is missing.
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
        raise UserError(f"{field}: unknown builtin text {name!r}, there is only builtin:python")
    digest = hashlib.sha256(platform.python_version().encode())
    for text in builtin.python_documents():
        digest.update(f"\0{len(text)}\0{text}".encode())
    return Source("builtin:python", digest.hexdigest(), builtin.python_documents)


def _files(spec: str, config: DataConfig, field: str) -> Source:
    path = Path(spec).expanduser()
    if path.is_dir():
        raise UserError(f"{field}: {spec} is a directory; name its files by a glob such as {spec.rstrip('/')}/*.txt")
    named = path.exists()
    paths = [path] if named else sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not paths:
        what = "no file matches" if glob.has_magic(spec) else "there is no file"
        raise UserError(f"{field}: {what} {spec!r}; other forms are builtin:python, tfds:NAME and hf:ORG/NAME")
    kinds = [files.split_extension(p) for p in paths]
    if named and path.stat().st_size == 0:
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

    name, split = _cut_split(name)
    try:
        if name.startswith(_DIRECTORY):
            records = tfds.builder_from_directory(Path(name).expanduser()).as_data_source(split)
        else:
            # Given a directory or options, data_source would no longer choose array_record, which needs no TensorFlow.
            records = tfds.data_source(name, split=split)
        info = records.dataset_info
        shards = [files.file_fingerprint(Path(part.filename)) for part in info.splits[split].file_instructions]
    except UserError:
        raise
    except Exception as e:  # tfds raises what its many parts raise
        raise _not_loaded(field, spec, e, "tfds:NAME[/CONFIG][:VERSION][@SPLIT]") from e

    def documents() -> Iterator[str]:
        return _records(spec, (records[i] for i in range(len(records))), text_field)

    fingerprint = _fingerprint(info.full_name, split, text_field, shards)
    return Source(spec, fingerprint, documents, frozenset({"text_field"}))


def _hugging_face(spec: str, name: str, text_field: str, field: str) -> Source:
    require_extra(f"{field}: {spec}", "datasets")
    import datasets

    name, split = _cut_split(name)
    dataset, config = _cut_config(name)
    try:
        records = datasets.load_dataset(dataset, config, split=split)
    except Exception as e:  # the library raises what its many parts raise
        raise _not_loaded(field, spec, e, "hf:ORG/NAME[/CONFIG][@SPLIT]") from e
    arrow = [files.file_fingerprint(Path(file["filename"])) for file in records.cache_files]

    def documents() -> Iterator[str]:
        if text_field not in records.column_names:
            files.record_text(dict.fromkeys(records.column_names), text_field, spec)
        batches = records.select_columns([text_field]).iter(batch_size=1000)
        return _records(spec, ({text_field: text} for batch in batches for text in batch[text_field]), text_field)

    fingerprint = _fingerprint(split, text_field, records.num_rows, arrow)
    return Source(spec, fingerprint, documents, frozenset({"text_field"}))


def _cut_split(name: str) -> tuple[str, str]:
    """The data set and the split in NAME[@SPLIT]."""
    rest, at, split = name.rpartition("@")
    return (rest, split) if at and split and "/" not in split else (name, "train")


def _cut_config(name: str) -> tuple[str, str | None]:
    """The data set and the configuration in ORG/NAME[/CONFIG] or DIRECTORY[/CONFIG]."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if path.parent.is_dir() and name.startswith(_DIRECTORY):
        return str(path.parent), path.name
    parts = name.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _not_loaded(field: str, spec: str, e: Exception, form: str) -> UserError:
    reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
    return UserError(f"{field}: cannot load {spec} (the form is {form}): {reason}")


def _records(spec: str, records: Iterable[dict[str, Any]], text_field: str) -> Iterator[str]:
    for i, record in enumerate(records):
        text = files.record_text(record, text_field, f"{spec}: record {i}")
        if text and not text.isspace():
            yield text
