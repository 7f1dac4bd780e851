"""Makes a fixed evaluation text: psann-jax make_eval --source=SOURCE --out=FILE.jsonl.

Chooses documents at random, the same ones for the same seed, and writes them with their SHA-256 in FILE.jsonl.sha256.
An existing file is never changed.
"""

import argparse
from collections.abc import Sequence

from psann_jax.cli.flags import StrictParser, positive_int, writable_file
from psann_jax.utils.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Writes the file and prints its hash."""
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from tqdm import tqdm

    from psann_jax.config import DataConfig
    from psann_jax.data.sources import open_source
    from psann_jax.experiments.make_eval import choose, write_eval

    config = DataConfig(document=flags.document, text_field=flags.text_field)
    source = open_source(flags.source, config, "--source")
    documents = tqdm(source.documents(), unit=" documents", disable=None)
    n, digest = write_eval(flags.out, choose(documents, flags.max_bytes, flags.seed))
    print(f"{flags.out}: {n:,} documents, sha256 {digest}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = StrictParser("make_eval", "Writes a random but reproducible choice of documents for data.valid_sources.")
    add = parser.add_argument
    add("--source", required=True, metavar="SOURCE", help="where the text comes from, as in data.sources")
    add("--out", required=True, type=writable_file, metavar="FILE", help="the file to write, ending in .jsonl")
    add("--max_bytes", type=positive_int, default=2_000_000, metavar="N", help="limit of the text; default 2000000")
    add("--seed", type=_seed, default=1337, metavar="N", help="seed of the choice; default 1337")
    add(
        "--document",
        choices=("auto", "line", "paragraph", "file", "article", "heading"),
        default="auto",
        help="what one document of a .txt file is; default auto, which is chosen by the text",
    )
    add("--text_field", default="text", metavar="NAME", help="field of .jsonl, .parquet, tfds: and hf: records")
    flags = parser.parse_strictly(argv)
    if flags.out.suffix != ".jsonl":
        raise UserError(f"--out: {flags.out}: must end in .jsonl")
    if flags.out.exists():
        raise UserError(f"--out: {flags.out}: exists already; name another file")
    return flags


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number of at least 0")
    return int(text)
