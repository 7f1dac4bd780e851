"""Whether runs of a sweep were trained on the same data, and whether its trials would read validation data."""

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from psann_jax.config import DataConfig
from psann_jax.config.data import DataSection
from psann_jax.config.sudoku import PuzzlesConfig
from psann_jax.data.cache import cache_root, key_of
from psann_jax.data.content import file_contents
from psann_jax.data.corpus import Corpus
from psann_jax.data.downloads import local_file
from psann_jax.data.sources import matching_paths
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location

_one_at_a_time = threading.Lock()  # runs start in threads, and the library `datasets` is not made for that


def data_fingerprint(data: DataSection) -> str | None:
    """Returns a hash that changes with the data that a run reads.

    Args:
      data: its `data` section.

    Returns:
      None for streams and families of other packages, and if the data cannot be read, which training reports.
    """
    with contextlib.suppress(UserError), _one_at_a_time:
        if isinstance(data, DataConfig) and not data.stream:
            return Corpus(data, progress=False).fingerprint
        if isinstance(data, PuzzlesConfig):
            root = cache_root(data.cache_dir)
            paths = [local_file(name, root, "data.files") for name in (*data.files, *data.valid_files)]
            return key_of([content.sha256 for content in file_contents(paths, root)])
    return None


def valid_hashes(data: DataSection) -> dict[str, str]:
    """Returns the SHA-256 of those validation sources that are single files, as `make_eval` writes them, by path.

    Args:
      data: the `data` section of a run.

    Returns:
      {} also if a file cannot be read, which training reports.
    """
    paths = [Path(name) for name in data.valid_names if Path(name).is_file()]
    with contextlib.suppress(UserError):
        contents = file_contents(paths, cache_root(data.cache_dir))
        return {str(path): content.sha256 for path, content in zip(paths, contents, strict=True)}
    return {}


def shared_data(data: DataSection) -> str:
    """Returns what the training and the fixed validation data have in common; "" if nothing is known.

    That is the name of a source or file, or of two files with equal content.

    Raises:
      UserError: a file cannot be read.
    """
    # The default split of a data set is train.
    sources = [{name.removesuffix("@train") for name in names} for names in (data.train_names, data.valid_names)]
    train, valid = _files(data.train_names), _files(data.valid_names)
    if same := sorted(sources[0] & sources[1]) or sorted(map(str, train & valid)):
        return same[0]
    # Only files of equal size are read.
    sizes = [{path.stat().st_size for path in paths} for paths in (train, valid)]
    alike = [[path for path in sorted(paths) if path.stat().st_size in sizes[0] & sizes[1]] for paths in (train, valid)]
    root = cache_root(data.cache_dir)
    known = {content.sha256: path for path, content in zip(alike[0], file_contents(alike[0], root), strict=True)}
    for path, content in zip(alike[1], file_contents(alike[1], root), strict=True):
        if content.sha256 in known:
            return f"the content of {known[content.sha256]} and {path}"
    return ""


def _files(names: Iterable[str]) -> set[Path]:
    """The files that paths and globs name; other sources and missing files are left out."""
    found: set[Path] = set()
    for name in names:
        with contextlib.suppress(UserError):
            location = given_location(name, "data.sources")
            if isinstance(location, Path):
                found |= {path.resolve() for path in matching_paths(name, location, "data.sources") if path.is_file()}
    return found
