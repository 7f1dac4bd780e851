"""Measures the memory of a training step: psann-jax bench memory --config=FILE [--batch_sizes=8,16 --remats=all]."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, names, positive_int, read_config

_STEPS = 30  # with --time


def main(argv: Sequence[str]) -> None:
    """Prints the memory of a training step for each batch size and rematerialisation."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.memory import all_remats, measure, report

    remats = all_remats(config) if flags.remats == ["all"] else flags.remats or [config.train.remat]
    sizes = flags.batch_sizes or [config.batch_size]
    result = measure(config, sizes, remats, n_steps=flags.steps)
    show(report(result), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench memory",
        "Compiles the training step for batch sizes and rematerialisations and reports its memory, without running it.",
    )
    add = parser.add_argument
    add("--batch_sizes", type=_sizes, metavar="N,N", help="windows or puzzles per step; default as configured")
    add("--remats", type=names, metavar="NAMES", help="values of train.remat, or all; default as configured")
    add("--time", action="store_true", help="also run the steps, and report their median time")
    add("--steps", type=positive_int, metavar="N", help=f"steps to run with --time; default {_STEPS}")
    add_json_flag(parser)
    flags = parser.parse_strictly(argv)
    if flags.steps is not None and not flags.time:
        parser.error("--steps: has no effect without --time")
    flags.steps = flags.steps or _STEPS if flags.time else 0
    return flags


def _sizes(text: str) -> list[int]:
    return [positive_int(size) for size in names(text)]
