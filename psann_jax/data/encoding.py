"""Documents as token ids, with the tokens that are targets of the loss."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from psann_jax.data.records import MarkedText, parts_of
from psann_jax.data.shard_file import Documents
from psann_jax.data.shards import Shard
from psann_jax.data.tokenizer import Tokenizer

_BATCH = 256  # documents encoded at once


class EncodedDocument(NamedTuple):
    """A document ``[bos] ids [eos]``.

    Attributes:
      ids: token ids.
      scored: for each, whether it is a target; None if all are.
    """

    ids: list[int]
    scored: list[bool] | None


def encode_documents(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[EncodedDocument]:
    """Yields the documents of several texts, which are encoded together.

    The parts of a `MarkedText` are encoded separately, so that a prompt has the tokens that it has alone. The end of a
    text is a target if its last part is.

    Raises:
      UserError: a prebuilt tokenizer cannot encode one of the texts.
    """
    parts = [parts_of(text) for text in texts]
    encoded = iter(tokenizer.encode_batch([part for text_parts in parts for part, _ in text_parts]))
    for text, text_parts in zip(texts, parts, strict=True):
        ids = list(itertools.islice(encoded, len(text_parts)))
        scored = None
        if isinstance(text, MarkedText):
            marks = [[is_target] * len(part) for part, (_, is_target) in zip(ids, text_parts, strict=True)]
            scored = [False, *itertools.chain(*marks), text_parts[-1][1]]
        yield EncodedDocument([tokenizer.bos_id, *itertools.chain(*ids), tokenizer.eos_id], scored)


def encode_shard(texts: Iterable[str], tokenizer: Tokenizer) -> Shard:
    """Returns documents as a shard in memory.

    Raises:
      UserError: as `encode_documents`.
    """
    found = Documents(wide=True)
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, _BATCH)):
        for text, document in zip(batch, encode_documents(batch, tokenizer), strict=True):
            found.add(document.ids, len(text.encode()), 0, document.scored)
    scored = np.frombuffer(found.scored, np.uint8) if found.has_scored else None
    return Shard(np.array(found.tokens, np.uint32), np.array(found.offsets), found.text_bytes, scored)
