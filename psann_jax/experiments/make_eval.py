"""Fixed evaluation texts: a random but reproducible choice of documents in one JSONL file.

Experiments name the file in data.valid_sources. Its SHA-256 is in FILE.jsonl.sha256.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable
from pathlib import Path

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, storage_errors


def choose(documents: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """Draws documents of at most `max_bytes` in total without replacement, and returns them in the given order.

    Each document's number is a hash of the seed, its index and its text; the documents with the lowest numbers are
    chosen. So a longer source changes the choice as little as possible, and only chosen documents are kept in memory.
    Blank documents and those of more than `max_bytes` are skipped.
    """
    chosen: list[tuple[int, int, str]] = []  # a heap with the highest number first, negated for heapq
    total = 0
    for index, text in enumerate(documents):
        size = len(text.encode())
        if not text.strip() or size > max_bytes:
            continue
        number = int.from_bytes(hashlib.sha256(f"{seed} {index} {text}".encode()).digest()[:8], "big")
        heapq.heappush(chosen, (-number, index, text))
        total += size
        while total > max_bytes:
            total -= len(heapq.heappop(chosen)[2].encode())
    return [text for _, _, text in sorted(chosen, key=lambda item: item[1])]


def write_eval(path: Path, documents: list[str]) -> tuple[int, str]:
    """Writes documents as JSON lines, and the file's SHA-256 beside it.

    Returns:
      The number of documents and the hash.

    Raises:
      UserError: there are no documents, or a file cannot be written.
    """
    if not documents:
        raise UserError("--source: has no document that fits into --max_bytes")
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()
    digest = hashlib.sha256(content).hexdigest()
    with storage_errors(path):
        atomic_write(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")
        atomic_write(path, content)
    return len(documents), digest
