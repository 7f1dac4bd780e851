"""A fixed evaluation text: psann-jax make_eval --source=SOURCE --out=FILE.jsonl.

Documents of a source, chosen by chance but the same ones for the same seed, in one JSONL file that experiments name in
data.valid_sources. Beside it stands FILE.jsonl.sha256; an existing file is never changed.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from psann_jax.bench.results import check_writable
from psann_jax.config import DataConfig
from psann_jax.data.sources import open_source
from psann_jax.utils.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "Where the text is from, as in data.sources.")
_OUT = flags.DEFINE_string("out", None, "The file to write, .jsonl.")
_BYTES = flags.DEFINE_integer("max_bytes", 2_000_000, "Of text, at most.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1337, "Of the choice.", lower_bound=0)
_DOCUMENT = flags.DEFINE_enum("document", "line", ["line", "file"], "What one document of a .txt file is.")
_FIELD = flags.DEFINE_string("text_field", "text", "Of .jsonl, .parquet, tfds: and hf: records.")


def main() -> None:
    """Writes the file that the flags ask for and prints its hash."""
    for flag in (_SOURCE, _OUT):
        if not flag.value:
            raise UserError(f"--{flag.name}: is missing")
    out = Path(str(_OUT.value))
    if out.suffix != ".jsonl":
        raise UserError(f"--out: {out}: must end in .jsonl")
    if out.exists():
        raise UserError(f"--out: {out}: exists, and is left as it is; name another file")
    check_writable(out, "--out")
    document: Any = _DOCUMENT.value
    config = DataConfig(document=document, text_field=str(_FIELD.value))
    source = open_source(str(_SOURCE.value), config, "--source")
    documents = tqdm(source.documents(), unit=" documents", disable=None)
    n, digest = write_eval(out, choose(documents, _BYTES.value, _SEED.value))
    print(f"{out}: {n:,} documents, sha256 {digest}")


def choose(documents: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """Documents of at most so many bytes together, drawn without replacement, in the order of the source.

    Each document has a number of its own, a hash of the seed, its place and its text; those with the lowest numbers are
    taken. So a longer source changes the choice no more than it must, and only the chosen ones are held in memory.
    """
    held: list[tuple[int, int, str]] = []  # the highest number first, negated for heapq
    total = 0
    for index, text in enumerate(documents):
        if not text.strip():
            continue
        number = int.from_bytes(hashlib.sha256(f"{seed} {index} {text}".encode()).digest()[:8], "big")
        heapq.heappush(held, (-number, index, text))
        total += len(text.encode())
        while total > max_bytes:
            total -= len(heapq.heappop(held)[2].encode())
    return [text for _, _, text in sorted(held, key=lambda item: item[1])]


def write_eval(path: Path, documents: list[str]) -> tuple[int, str]:
    """Writes documents as JSON lines, whole or not at all, and their SHA-256 beside them.

    Returns:
      How many documents, and the hash of the file.

    Raises:
      UserError: there are none.
    """
    if not documents:
        raise UserError("--source: holds no document that fits into --max_bytes")
    content = "".join(_lines(documents)).encode()
    digest = hashlib.sha256(content).hexdigest()
    for name, data in ((f"{path.name}.sha256", f"{digest}  {path.name}\n".encode()), (path.name, content)):
        partial = path.with_name(f"{name}.partial")
        partial.write_bytes(data)
        partial.replace(path.with_name(name))
    return len(documents), digest


def _lines(documents: list[str]) -> Iterator[str]:
    return (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
