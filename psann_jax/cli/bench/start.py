"""Measures the start of training: psann-jax bench start --config=FILE."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, positive_int, read_config


def main(argv: Sequence[str]) -> None:
    """Prints the seconds to the first step, without and with a filled cache."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.start import measure, report

    result = measure(config, flags.starts)
    show(report(result), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench start",
        "Measures the seconds from the start of training to its first step, with an empty cache and again.",
    )
    parser.add_argument("--starts", type=positive_int, default=2, metavar="N", help="number of starts; default 2")
    add_json_flag(parser)
    flags = parser.parse_strictly(argv)
    if flags.starts < 2:
        parser.error("--starts: is 1, must be at least 2")
    return flags
