"""Text that earlier versions prepared (format 1): one file of training tokens and one of validation tokens.

Runs of these versions continue on it. Their split cannot be made again: it was drawn from the lengths of all documents.
"""

import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from psann_jax.config import DataConfig
from psann_jax.data.cache import cache_root
from psann_jax.data.corpus import Corpus
from psann_jax.data.loader import TextData
from psann_jax.data.shards import Prepared, Shard
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.utils.checksums import file_crc32
from psann_jax.utils.errors import UserError

_COUNTS, _CHECKSUMS = "counts.json", "crc32"


def is_of_earlier_version(fingerprint: str) -> bool:
    """Returns whether the fingerprint of a text, as in a checkpoint, is that of an earlier version."""
    return re.fullmatch("[0-9a-f]{20}", fingerprint) is not None


def load_earlier_text(config: DataConfig, fingerprint: str, tokenizer: Tokenizer, progress: bool = True) -> TextData:
    """Opens a text that an earlier version prepared.

    Args:
      config: the `data` section of the run.
      fingerprint: that the run recorded.
      tokenizer: of the run.
      progress: show progress on stderr.

    Raises:
      UserError: the text is no longer in the cache, or is damaged.
    """
    directory = cache_root(config.cache_dir) / f"shards-{fingerprint}"
    if not directory.is_dir():
        raise UserError(
            f"{directory}: the run was started by an earlier version, which prepared its text there, and that is no "
            "longer in the cache; restore this directory, set data.cache_dir to a copy of the cache, or train anew in "
            "another --workdir"
        )
    prepared = _open(directory, fingerprint)
    corpus = Corpus(config, progress)
    return TextData(dataclasses.replace(config, document=corpus.document), tokenizer, prepared, corpus.sources)


def _open(directory: Path, fingerprint: str) -> Prepared:
    try:
        counts = json.loads((directory / _COUNTS).read_text(encoding="utf-8"))
        for name, crc32 in counts.pop(_CHECKSUMS, {}).items():  # the first versions wrote none
            found = zlib.crc32(json.dumps(counts).encode()) if name == _COUNTS else file_crc32(directory / name)
            if found != crc32:
                raise ValueError(f"{name}: its checksum differs")
        train, valid = (_open_shard(directory, name, counts[name]) for name in ("train", "valid"))
        names = tuple((str(name), int(n)) for name, n in counts.get("valid_names", ()))
        return Prepared(train, valid, tuple(counts["source_documents"]), fingerprint, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{directory}: the text that an earlier version prepared for the run is damaged ({reason}); restore this "
            "directory from a copy, or train anew in another --workdir"
        ) from error


def _open_shard(directory: Path, name: str, counts: dict[str, Any]) -> Shard:
    tokens = directory / f"{name}.tokens"
    dtype = np.dtype(counts["dtype"])
    if tokens.stat().st_size != counts["tokens"] * dtype.itemsize:
        raise ValueError(f"{tokens.name} has {tokens.stat().st_size} bytes for {counts['tokens']} tokens")
    tokens_N = np.asarray(np.memmap(tokens, dtype, "r"))
    offsets = np.asarray(np.load(directory / f"{name}.offsets.npy", mmap_mode="r"))
    if len(offsets) != counts["documents"] + 1:
        raise ValueError(f"{name}.offsets.npy has {len(offsets)} entries for {counts['documents']} documents")
    return Shard(tokens_N, offsets, counts["text_bytes"])
