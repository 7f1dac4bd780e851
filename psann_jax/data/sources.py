"""Sources of text: a short string names a source of documents.

  builtin:python                 help topics and module sources of the running Python's standard library
  PATH or GLOB                   .txt (one document per line, paragraph or file, see `data.document`), .jsonl,
                                 .parquet; .txt and .jsonl also compressed: .gz, .xz or .zst
  tfds:NAME[/CONFIG][:VERSION][@SPLIT]   TensorFlow Datasets, read without TensorFlow (array_record files); also
                                 tfds:DIRECTORY of a prepared version
  hf:ORG/NAME[/CONFIG][@SPLIT]   the Hugging Face `datasets` library; also hf:DIRECTORY[/CONFIG] of local files or of
                                 `Dataset.save_to_disk`

SPLIT defaults to `train`; name a validation split in `data.valid_sources`. The order of documents is stable.
"""

import glob
import hashlib
import itertools
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from psann_jax.config import DataConfig
from psann_jax.data import builtin, files
from psann_jax.data.text_units import Unit, choose_unit, suggest_unit
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import given_path, storage_errors

_HEADS, _HEADS_BYTES = 64, 1 << 20  # files whose beginning is read to choose the unit, and bytes of all of these
_NAMED_FILES = 32  # of a source; losses of more files are not reported one by one
_DIRECTORY = ("/", ".", "~")  # first character of a directory's name, which tells it from the name of a data set


@dataclass(frozen=True)
class Source:
    """A sequence of documents that can be read any number of times.

    Attributes:
      name: the string that names the source.
      fingerprint: a hash that changes with the documents.
      parts: returns a new iterator over names and documents of the parts: files, or else the source as a whole; reading
        may raise UserError.
      settings: which of the settings `document` and `text_field` affect the documents.
      unit: what one document is in its .txt files, or, if it is an article, in its records; otherwise None.
      suggested: what may suit its .txt files better than the unit that `data.document=auto` chose.
    """

    name: str
    fingerprint: str
    parts: Callable[[], Iterator[tuple[str, Iterator[str]]]]
    settings: frozenset[str] = frozenset()
    unit: Unit | None = None
    suggested: Unit | None = None

    def documents(self) -> Iterator[str]:
        """Returns a new iterator over the documents; reading may raise UserError."""
        return itertools.chain.from_iterable(texts for _, texts in self.parts())


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
        return _tfds(spec, name, config, field)
    if colon and kind == "hf":
        return _hugging_face(spec, name, config, field)
    return _files(spec, config, field)


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _builtin(name: str, field: str) -> Source:
    if name != "python":
        raise UserError(f"{field}: unknown built-in text {name!r}; the only one is builtin:python")
    digest = hashlib.sha256(platform.python_version().encode())
    for text in builtin.python_documents():
        digest.update(f"\0{len(text)}\0{text}".encode())
    return Source("builtin:python", digest.hexdigest(), _whole("builtin:python", builtin.python_documents))


def _whole(spec: str, documents: Callable[[], Iterator[str]]) -> Callable[[], Iterator[tuple[str, Iterator[str]]]]:
    """Returns `Source.parts` of a source without files."""
    return lambda: iter(((spec, documents()),))


def _files(spec: str, config: DataConfig, field: str) -> Source:
    paths = _paths(spec, field)
    kinds = [files.split_extension(path) for path in paths]
    for path in paths:
        files.refuse_pointer(path)
        if path.stat().st_size == 0:
            if len(paths) == 1:
                raise UserError(f"{path}: is empty")
            print(f"warning: {path}: is empty", file=sys.stderr)
    texts = [path for path, (kind, _) in zip(paths, kinds, strict=True) if kind == ".txt"]
    heads = _heads(texts)
    unit: Unit | None = None
    suggested: Unit | None = None
    if texts and config.document == "auto":
        unit, suggested = choose_unit(list(map(_unix, heads)), len(texts)), suggest_unit(list(map(_unix, heads)))
    elif texts or config.document == "article":
        unit = cast(Unit, config.document)

    def parts() -> Iterator[tuple[str, Iterator[str]]]:
        for path in paths:
            name = str(path) if len(paths) <= _NAMED_FILES else spec
            yield name, files.read_documents(path, unit or "file", config.text_field)

    contents: list[Any] = [(kind, files.file_fingerprint(path)) for kind, path in zip(kinds, paths, strict=True)]
    if any("\r" in head and (unit == "file" or "\n" not in head) for head in heads):
        contents.append("line ends")  # version 0.1 kept these characters
    affected_by: dict[str, str] = {"document": unit} if unit else {}
    if len(texts) < len(paths):
        affected_by["text_field"] = config.text_field
    fingerprint = _fingerprint([affected_by[name] for name in sorted(affected_by)], contents)
    return Source(spec, fingerprint, parts, frozenset(affected_by), unit, suggested)


def _paths(spec: str, field: str) -> list[Path]:
    """Returns the files that a path or glob names, sorted."""
    path = given_path(spec, field)
    with storage_errors(spec, "read"):
        if path.is_dir():
            example = f"{spec.rstrip('/')}/*.txt"
            raise UserError(f"{field}: {spec} is a directory; name its files with a glob such as {example}")
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


def _tfds(spec: str, name: str, config: DataConfig, field: str) -> Source:
    require_extra(f"{field}: {spec}", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    name, split = _parse_split(name)
    try:
        if name.startswith(_DIRECTORY):
            records = tfds.builder_from_directory(given_path(name, field)).as_data_source(split)
        else:
            # Called without a directory or options, data_source chooses array_record, which needs no TensorFlow.
            records = tfds.data_source(name, split=split)
        info = records.dataset_info
        shards = [files.file_fingerprint(Path(part.filename)) for part in info.splits[split].file_instructions]
    except UserError:
        raise
    except Exception as e:  # tfds has no common base class for its errors
        raise _load_error(field, spec, e, "tfds:NAME[/CONFIG][:VERSION][@SPLIT]") from e

    def texts() -> Iterator[str]:
        return _texts(spec, (records[i] for i in range(len(records))), config.text_field)

    return _record_source(spec, (info.full_name, split, config.text_field, shards), texts, config)


def _hugging_face(spec: str, name: str, config: DataConfig, field: str) -> Source:
    require_extra(f"{field}: {spec}", "datasets")
    import datasets

    name, split = _parse_split(name)
    dataset, subset = _parse_config(name, field)
    try:
        if _is_saved(Path(dataset)):
            records = _load_saved(datasets.load_from_disk(dataset), split)
        else:
            records = datasets.load_dataset(dataset, subset, split=split)
    except Exception as e:  # datasets has no common base class for its errors
        raise _load_error(field, spec, e, "hf:ORG/NAME[/CONFIG][@SPLIT]") from e
    arrow = [files.file_fingerprint(Path(file["filename"])) for file in records.cache_files]

    text_field = config.text_field

    def texts() -> Iterator[str]:
        if text_field not in records.column_names:
            files.record_text(dict.fromkeys(records.column_names), text_field, spec)
        batches = records.select_columns([text_field]).iter(batch_size=1000)
        return _texts(spec, ({text_field: text} for batch in batches for text in batch[text_field]), text_field)

    return _record_source(spec, (split, text_field, records.num_rows, arrow), texts, config)


def _record_source(
    spec: str, content: tuple[Any, ...], texts: Callable[[], Iterator[str]], config: DataConfig
) -> Source:
    """Returns a source of records; `content` identifies their texts."""
    if config.document == "article":
        fingerprint, settings = _fingerprint(*content, "article"), frozenset({"text_field", "document"})
        return Source(
            spec, fingerprint, _whole(spec, lambda: files.record_articles(texts(), spec)), settings, "article"
        )

    def documents() -> Iterator[str]:
        return (text for text in texts() if text and not text.isspace())

    return Source(spec, _fingerprint(*content), _whole(spec, documents), frozenset({"text_field"}))


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


def _texts(spec: str, records: Iterable[dict[str, Any]], text_field: str) -> Iterator[str]:
    for i, record in enumerate(records):
        yield files.record_text(record, text_field, f"{spec}: record {i}")
