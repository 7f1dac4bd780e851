"""Compares this device's kernels with the plain implementations: psann-jax bench kernels --config=FILE."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, read_config


def main(argv: Sequence[str]) -> None:
    """Prints the errors of loss and gradients.

    Raises:
      SystemExit: with code 1, they are larger than rounding explains.
    """
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.kernel_agreement import measure, report

    result = measure(config)
    show(report(result), result, flags.json)
    if not result["ok"]:
        raise SystemExit(1)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench kernels",
        "Compares loss and gradients of one micro-batch, computed with the kernels of this device, with those of the "
        "plain implementations, at the full size of an experiment and on random data.",
    )
    add_json_flag(parser)
    return parser.parse_strictly(argv)
