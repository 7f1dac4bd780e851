"""Checks and measures one GPU or TPU: psann-jax bench accelerator [--minutes=30] [--out=DIR]."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import StrictParser, positive_int
from psann_jax.utils.files import given_path

_OUT = "reports/accelerator"  # those of --tiny lie elsewhere, as a run cannot continue with other sizes


def main(argv: Sequence[str]) -> None:
    """Runs the stages that the directory of results does not have yet, and prints a table.

    Raises:
      SystemExit: with code 1, a stage failed; after a signal, with the code that a shell gives to it.
      UserError: the directory of results cannot be written.
    """
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.bench.accelerator import report, run_stages
    from psann_jax.bench.accelerator_stages import stages

    out = flags.out or Path(f"{_OUT}_tiny" if flags.tiny else _OUT)
    results = run_stages(stages(tiny=flags.tiny), out, flags.minutes)
    show(report(results), results, flags.json)
    if any(stage["status"] == "failed" for stage in results["stages"].values()):
        raise SystemExit(1)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = StrictParser(
        "bench accelerator",
        "Compares the kernels of this device with the plain implementations, measures speed and memory, runs the "
        "self-test and trains, in this order, until time is up. Run again, it continues where it stopped.",
    )
    add = parser.add_argument
    add("--minutes", type=positive_int, default=30, metavar="N", help="time for all stages; default 30")
    add("--out", type=_directory, metavar="DIR", help=f"the results; default {_OUT}, with --tiny {_OUT}_tiny")
    add("--tiny", action="store_true", help="tiny sizes, which try the command on any machine")
    add_json_flag(parser)
    return parser.parse_strictly(argv)


def _directory(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty, must be a directory")
    return given_path(text, "--out")
