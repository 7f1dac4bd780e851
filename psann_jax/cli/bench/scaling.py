"""Estimates a training step on large clusters: psann-jax bench scaling --config=FILE [--devices=N ...]."""

import argparse
import dataclasses
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, positive_int, positive_number, read_config


def main(argv: Sequence[str]) -> None:
    """Prints compute, communication and memory for each number of devices."""
    flags = _parse(argv)
    config = read_config(flags)
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.scaling import Cluster, estimate, report

    cluster = Cluster(
        flops=flags.peak_tflops * 1e12 * flags.utilisation,
        node=flags.node,
        fast=flags.node_gb_s * 1e9,
        slow=flags.network_gb_s * 1e9,
    )
    estimates = estimate(config, cluster, flags.devices or [8, 64, 512])
    result = {"estimates": [dataclasses.asdict(e) for e in estimates]}
    show(report(config, estimates), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench scaling", "Estimates compute, memory and communication of a training step on clusters of any size."
    )
    add = parser.add_argument
    add(
        "--devices",
        action="append",
        type=positive_int,
        metavar="N",
        help="number of accelerators; can be repeated; default 8, 64 and 512",
    )
    add(
        "--peak_tflops",
        type=positive_number,
        default=989.4,
        metavar="X",
        help="peak 16-bit matrix TFLOP/s of an accelerator; default 989.4, an H100 SXM",
    )
    add(
        "--utilisation",
        type=positive_number,
        default=0.4,
        metavar="X",
        help="fraction of the peak that matrix products reach; default 0.4",
    )
    add("--node", type=positive_int, default=8, metavar="N", help="accelerators joined by fast links; default 8")
    add(
        "--node_gb_s",
        type=positive_number,
        default=450.0,
        metavar="X",
        help="GB/s from an accelerator to others of its node, one direction; default 450",
    )
    add(
        "--network_gb_s",
        type=positive_number,
        default=50.0,
        metavar="X",
        help="GB/s from an accelerator to other nodes, one direction; default 50",
    )
    add_json_flag(parser)
    return parser.parse_strictly(argv)
