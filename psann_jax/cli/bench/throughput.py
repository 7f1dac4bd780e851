"""Measures training: psann-jax bench throughput --config=FILE [--against=FILE | --peer=psannlm]."""

import argparse
import os
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import (
    ConfigParser,
    add_override_help,
    positive_int,
    read_config,
    read_experiment,
    split_overrides,
)


def main(argv: Sequence[str]) -> None:
    """Prints tokens/s, and the ratio to the rival if there is one."""
    flags = _parse(argv)
    configs = [read_config(flags)]
    if flags.against:
        configs.append(read_experiment(flags.against, flags.against_overrides, "against"))
    # Without this, the first process on a GPU, which may be this one, would take its whole memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.throughput import measure, report, sized

    configs = [sized(config, flags.batch_tokens, compared=len(configs) > 1) for config in configs]
    result = measure(*configs, peer_name=flags.peer, n_steps=flags.steps)
    show(report(result), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench throughput",
        "Measures training tokens/s on random data, alone or in turn with another config or implementation.",
    )
    add = parser.add_argument
    add("--against", metavar="FILE", help="compare with this config")
    add_override_help(parser, "against")
    add(
        "--peer",
        choices=("psannlm", "torch"),
        help="compare with another implementation of the same model; torch, stock PyTorch layers, is for base sudoku",
    )
    add("--steps", type=positive_int, default=30, metavar="N", help="steps of each contender; default 30")
    add(
        "--batch_tokens",
        type=int,
        metavar="N",
        help="tokens per step of each contender; 0: as configured; default as configured, but two windows in float32 "
        "with --against on a CPU",
    )
    add_json_flag(parser)
    rest, against_overrides = split_overrides(argv, "against")
    flags = parser.parse_strictly(rest)
    flags.against_overrides = against_overrides
    if flags.against is None and against_overrides:
        parser.error(f"--against.{against_overrides[0]}: has no effect without --against")
    if flags.against is not None and flags.peer is not None:
        parser.error("--against: cannot be used together with --peer; measure one after the other")
    if flags.batch_tokens is not None and flags.batch_tokens < 0:
        parser.error(f"--batch_tokens: is {flags.batch_tokens}, must be at least 0")
    return flags
