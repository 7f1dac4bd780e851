"""The split of documents into training and validation text, by a hash of each document.

A document's side depends on its text only, not on the other documents: it is known without a first pass, stays the same
when text is added, and all copies of a document are on one side.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from psann_jax.utils.errors import UserError

_RANGE = 1 << 64


def document_hash(text: str, seed: int, purpose: str = "split") -> int:
    """Returns a 64-bit hash of a text and a seed, BLAKE2b; hashes for different purposes are independent."""
    key = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big")


@dataclass(frozen=True)
class Split:
    """The rule that tells validation text: documents whose hash is below a threshold.

    Attributes:
      seed: of the hash.
      threshold: 0 makes all documents training text, 2^64 validation text.
    """

    seed: int
    threshold: int

    def is_valid(self, text: str) -> bool:
        """Returns whether a document is validation text."""
        if self.threshold in (0, _RANGE):
            return self.threshold > 0
        return document_hash(text, self.seed) < self.threshold


TRAIN, VALID = Split(0, 0), Split(0, _RANGE)


def find_split(texts: Iterable[str], fraction: float, seed: int) -> Split:
    """Returns the split of documents for a fraction of validation text.

    The threshold is fraction * 2^64. If no document is below it, the one with the smallest hash is validation text; if
    all are, the one with the largest is training text. Only as many documents are read as are needed to see that
    neither is the case: often about 1 / fraction.

    Args:
      texts: all documents, in any order.
      fraction: of validation text, between 0 and 1.
      seed: of the hash.

    Raises:
      UserError: there are fewer than two different documents.
    """
    threshold = int(fraction * _RANGE)
    smallest, largest = _RANGE, -1
    for text in texts:
        value = document_hash(text, seed)
        smallest, largest = min(smallest, value), max(largest, value)
        if smallest < threshold <= largest:
            return Split(seed, threshold)
    if smallest >= largest:
        raise UserError(
            "data.valid_sources: is empty, but one document cannot be split into training and validation text; "
            "name a validation text (or set data.document to line or paragraph)"
        )
    return Split(seed, smallest + 1 if smallest >= threshold else largest)
