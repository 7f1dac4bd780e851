"""Prepares a corpus: one pass over the text, piece by piece, into a directory of shard files and an index.

The directory is in the cache, under a key of the text, its split and the tokenizer. Each shard file is written as a
whole or not at all, and the index when all are there. So an interrupted preparation continues with the missing files.
The result depends neither on interruptions nor on the number of processes or machines.
"""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psann_jax.data.cache import STORAGE_HINT, key_of, locked
from psann_jax.data.corpus import Corpus
from psann_jax.data.piece_task import PieceTask, prepare_piece
from psann_jax.data.prepare_progress import PrepareProgress
from psann_jax.data.shard_file import Header, ShardFile
from psann_jax.data.shards import Prepared, join_files
from psann_jax.data.sources import PIECE_BYTES
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, fsync_path, storage_errors

FORMAT = 2
INDEX = "index.json"

# Does the tasks, in any order, and shows their progress.
Run = Callable[[list[PieceTask], PrepareProgress], None]


def run_here(tasks: list[PieceTask], progress: PrepareProgress) -> None:
    """Does tasks one after another in this process."""
    for task in tasks:
        prepare_piece(task, progress.add)


def text_fingerprint(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Returns the fingerprint that a corpus has once it is prepared; see `Prepared`."""
    return f"{FORMAT}-{key_of(corpus.fingerprint, tokenizer.fingerprint)}"


def prepare(corpus: Corpus, tokenizer: Tokenizer, root: Path, progress: bool = True, run: Run = run_here) -> Prepared:
    """Tokenises a corpus, or finds it prepared in the cache.

    If several processes need the same text, one prepares it and the others wait. Checksums are verified when a part of
    a file is first used in a process, because a changed byte would silently train another model; only sizes and headers
    are verified at the start. Files that are missing or damaged are prepared again.

    Args:
      corpus: the text.
      tokenizer: encodes the text.
      root: the cache directory.
      progress: show progress on stderr.
      run: does the tasks.

    Raises:
      UserError: the text cannot be read or is too short, or the cache cannot be written.
    """
    fingerprint = text_fingerprint(corpus, tokenizer)
    directory = root / f"shards-{key_of(fingerprint, PIECE_BYTES)}"
    files = _find(directory)
    if files is None:
        with storage_errors(root, hint=STORAGE_HINT):
            root.mkdir(parents=True, exist_ok=True)
            with locked(root / f"{directory.name}.lock", progress):
                files = _find(directory)  # another process may have prepared it
                if files is None:
                    files = _build(directory, corpus, tokenizer, progress, run)
    return _join(files, corpus, fingerprint)


def _find(directory: Path) -> list[ShardFile] | None:
    """Returns the files of a directory that is complete; damage within files is found when they are used."""
    try:
        content = json.loads((directory / INDEX).read_bytes())
        shards = content["shards"]
        if content["crc32"] != zlib.crc32(json.dumps(shards).encode()):
            return None
        files = [ShardFile(directory / name, Header.from_json(header)) for name, header in shards]
        return files if all(file.has_size() for file in files) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build(directory: Path, corpus: Corpus, tokenizer: Tokenizer, progress: bool, run: Run) -> list[ShardFile]:
    """Does what is missing in a directory, then writes the index."""
    if (directory / INDEX).exists():
        print(f"{directory}: files are damaged or missing; preparing them again", file=sys.stderr)
    directory.mkdir(exist_ok=True)
    _remove_leftovers(directory)
    data = tokenizer.to_bytes()
    tasks = [PieceTask(i, piece, data, directory, PIECE_BYTES) for i, piece in enumerate(corpus.pieces(PIECE_BYTES))]
    done = [task.is_done() for task in tasks]
    with PrepareProgress(tasks, done, progress) as bar:
        run([task for task, is_done in zip(tasks, done, strict=True) if not is_done], bar)
    _remove_leftovers(directory)  # of a node that has died
    lost = next((task for task in tasks if not task.is_done()), None)
    if lost is not None:
        raise UserError(f"{lost.path(0)}: was prepared, but is missing or damaged; start again")
    files = [ShardFile(task.path(i), header) for task in tasks for i, header in enumerate(task.written())]
    _refuse_blank_sources(files, corpus)
    shards: list[Any] = [[file.path.name, file.header.to_json()] for file in files]
    index = {"format": FORMAT, "shards": shards, "crc32": zlib.crc32(json.dumps(shards).encode())}
    fsync_path(directory)
    atomic_write(directory / INDEX, json.dumps(index), fsync=True)
    return files


def _remove_leftovers(directory: Path) -> None:
    for leftover in directory.glob("*.tmp"):
        leftover.unlink(missing_ok=True)


def _refuse_blank_sources(files: list[ShardFile], corpus: Corpus) -> None:
    with_text = {file.header.source for file in files if file.header.n_documents}
    for i, source in enumerate([*corpus.sources, *corpus.valid_sources]):
        if i not in with_text:
            raise UserError(f"{source.name}: has no text, only blank lines")


def _join(files: list[ShardFile], corpus: Corpus, fingerprint: str) -> Prepared:
    """Returns files as training and validation text."""
    sources = [*corpus.sources, *corpus.valid_sources]
    train = [0] * len(corpus.sources)
    names: list[tuple[str, int]] = []
    for header in (file.header for file in files):
        if header.train.documents:
            train[header.source] += header.train.documents
        for index, n in header.valid.files:
            name = sources[header.source].files[index]
            if names and names[-1][0] == name:
                n += names.pop()[1]
            names.append((name, n))
    return Prepared(join_files(files, "train"), join_files(files, "valid"), tuple(train), fingerprint, tuple(names))
