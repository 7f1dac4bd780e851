"""Measures data parallelism on simulated CPU devices: psann-jax bench devices --config=FILE [--count=N ...]."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, positive_int, read_config


def main(argv: Sequence[str]) -> None:
    """Prints tokens/s and efficiency for each number of devices."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.devices import measure, report

    result = measure(config, flags.count or [1, 2, 4, 8], n_steps=flags.steps)
    show(report(result), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench devices", "Measures the cost of dividing the same batch over 1, 2, 4, ... simulated CPU devices."
    )
    add = parser.add_argument
    add(
        "--count",
        action="append",
        type=positive_int,
        metavar="N",
        help="number of devices; can be repeated, and efficiency is relative to the first; default 1, 2, 4 and 8",
    )
    add("--steps", type=positive_int, default=30, metavar="N", help="steps for each number; default 30")
    add_json_flag(parser)
    return parser.parse_strictly(argv)
