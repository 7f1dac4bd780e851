"""Converts weights: psann-jax convert --from=SOURCE --to=DESTINATION.

SOURCE is a run's workdir, a .safetensors file, a directory with model.safetensors, a folder of transformers as
hf:DIRECTORY, or a .pt file of psannlm or of the Newton Gravity Transformer. A run or a file may be in a bucket:
s3://... or gs://...
DESTINATION is a .safetensors file, a new directory that becomes a workdir for the commands on trained runs, or
hf:DIRECTORY, a new folder that transformers loads.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from psann_jax.cli.flags import StrictParser
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import given_path, storage_errors
from psann_jax.utils.locations import given_location

_FILE = ".safetensors"


def main(argv: Sequence[str]) -> None:
    """Reads the weights, checks them and writes them in the other format."""
    flags = _parse(argv)
    source, destination = given_location(flags.source, "--from"), given_path(flags.destination, "--to")
    if flags.overwrite and destination.suffix != _FILE:
        raise UserError(f"--overwrite: has no effect for {destination}, which is no {_FILE} file; omit it")
    with storage_errors(destination):
        exists = destination.exists()
    if exists and destination.suffix == _FILE and not flags.overwrite:
        raise UserError(f"{destination}: exists; name another file, or give --overwrite")
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.convert.hf.write import write_folder
    from psann_jax.convert.psannlm import PsannlmWarning
    from psann_jax.convert.read import PICKLED, folder_path, read_weights
    from psann_jax.convert.run import write_run
    from psann_jax.convert.safetensors_file import write_safetensors
    from psann_jax.data.tokenizer import Tokenizer

    if destination.suffix in PICKLED:
        fix = f"name a {_FILE} file, hf:DIRECTORY or a new workdir"
        raise UserError(f"--to: {destination}: files of PyTorch are only read; {fix}")
    given = ("checkpoint", "ema_params", "n_heads", "positional_encoding", "max_length")
    options = {name: value for name in given if (value := getattr(flags, name)) is not None}
    tokenizer = None if flags.tokenizer is None else Tokenizer.load(flags.tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PsannlmWarning)
        weights = read_weights(str(source), tokenizer, **options)
    for warning in (w for w in caught if issubclass(w.category, PsannlmWarning)):
        print(f"warning: {warning.message}", file=sys.stderr)
    if (folder := folder_path(destination)) is not None:
        write_folder(folder, weights, flags.source)
    elif destination.suffix == _FILE:
        write_safetensors(destination, weights)
    else:
        write_run(destination, weights, str(source))
    network = weights.network()
    model = network.config
    print(f"{destination}: {model.base}, {network.n_params:,} parameters, vocabulary {model.vocab_size:,}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = StrictParser("convert", "Converts weights between runs and .safetensors files; reads PyTorch files.")
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help=f"a workdir, a {_FILE} file, hf:DIRECTORY of transformers, or a .pt file of psannlm or NGT",
    )
    add(
        "--to",
        dest="destination",
        required=True,
        metavar="DESTINATION",
        help=f"a {_FILE} file, a new workdir, or hf:DIRECTORY, which transformers loads",
    )
    add(
        "--checkpoint",
        metavar="WHICH",
        help="if SOURCE is a workdir: last, best (by validation) or a step; default last",
    )
    add(
        "--ema",
        action="store_const",
        const=True,
        dest="ema_params",
        help="if SOURCE is a workdir: use the EMA of the weights (train.ema_decay)",
    )
    add("--tokenizer", metavar="FILE", help="a tokenizer.json or sentencepiece .model, if SOURCE has no tokenizer")
    add("--n_heads", type=int, metavar="N", help="number of heads, for a psannlm file without it")
    add(
        "--positional_encoding",
        choices=("rope", "alibi", "sinusoidal"),
        help="encoding of positions, for a psannlm file without it; default rope",
    )
    add("--max_length", type=int, metavar="N", help="context length of a model from a psannlm file; default 1024")
    add("--overwrite", action="store_true", help=f"replace an existing {_FILE} file")
    return parser.parse_strictly(argv)
