"""Properties of a text that are probably mistakes, as one line each for the start of a run."""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from psann_jax.data.shards import Shard
from psann_jax.data.sources import Source
from psann_jax.data.tokenizer import Tokenizer

_UNKNOWN = "<unk>"  # what WikiText without "raw" in its name has in place of rare words
_SAMPLE_TOKENS, _PIECES = 65_536, 16
_FEW_UNKNOWN = 1e-4  # of the tokens; texts about language models mention it, too
_SUGGESTED = {"article": "headings of WikiText articles", "heading": "headings of Markdown chapters ('# TITLE')"}


def unit_warnings(sources: Sequence[Source]) -> Iterator[str]:
    """Yields a line for each source of which `data.document=auto` did not choose what its headings suggest."""
    for source in sources:
        if source.suggested is not None:
            yield (
                f"data.document=auto makes each {source.unit} of {source.name} a document, although it has "
                f"{_SUGGESTED[source.suggested]}; set data.document={source.suggested} to keep these whole, "
                f"or data.document={source.unit}"
            )


def repeat_warnings(sources: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yields a line if a file is there twice, also under two names.

    Args:
      sources: for each source, the names of its files, or its own name.
    """
    first: dict[object, str] = {}
    repeated = []
    for names in sources:
        for name in dict.fromkeys(names):
            file = _file_of(name)
            if file in first:
                repeated.append((first[file], name))
            first.setdefault(file, name)
    if repeated:
        (one, other), others = repeated[0], len(repeated) - 1
        more = f", and {others:,} more files" if others else ""
        yield f"data.sources names the same text twice, which is then trained on twice: {one} and {other}{more}"


def _file_of(name: str) -> object:
    """Returns what is equal for all names of a file."""
    try:
        stat = os.stat(name)
    except (OSError, ValueError):  # not a file on a disk
        return name
    return stat.st_dev, stat.st_ino


def unknown_word_warnings(shards: Sequence[Shard], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields a line if a sample of a text has the characters "<unk>" where words were.

    The unknown-token of the tokenizer itself is not meant, which is not text.
    """
    n_tokens = n_found = 0
    for shard in shards:
        size = max(_SAMPLE_TOKENS // _PIECES, 1)
        n_pieces = min(_PIECES, -(-shard.n_tokens // size))
        for i in range(n_pieces):
            start = i * shard.n_tokens // n_pieces
            ids = shard.tokens_N[start : start + size]
            n_tokens += len(ids)
            n_found += tokenizer.decode(ids[ids != tokenizer.unk_id].astype(np.int64).tolist()).count(_UNKNOWN)
    if n_found > max(_FEW_UNKNOWN * n_tokens, 2):
        yield (
            f"the text has {_UNKNOWN} in place of words, {n_found:,} times in {n_tokens:,} sampled tokens, as "
            "preprocessed WikiText does; its losses say little about text as it is, so use the raw version"
        )
