"""Compiles a run for absent devices: psann-jax bench compile --config=FILE --topology=v5e:2x4 [--what=train,decode]."""

import argparse
from collections.abc import Sequence
from typing import Any

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, names, positive_int, read_config

_PROGRAMS = ("train", "eval", "prefill", "decode")


def main(argv: Sequence[str]) -> None:
    """Prints memory, kernels, traffic and an estimate of the time of each program.

    Raises:
      SystemExit: with code 1, a program does not compile.
    """
    flags = _parse(argv)
    config = read_config(flags)
    from psann_jax.bench.topologies import prepare

    prepare()
    # Imported late: `prepare` must come first.
    from psann_jax.bench.compile import compile_programs, report

    result = compile_programs(config, flags.topology, flags.what, flags.rows)
    show(report(result), result, flags.json)
    if not all(program["ok"] for program in result["programs"].values()):
        raise SystemExit(1)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench compile",
        "Compiles the programs of an experiment for TPUs or GPUs that are not there, and reports their memory, "
        "kernels, memory traffic and collectives. Nothing is run. Needs the extra aot-tpu or aot-gpu.",
    )
    add = parser.add_argument
    add(
        "--topology",
        required=True,
        type=_topology,
        metavar="KIND:SIZE",
        help="the devices: TPU slices v5e:2x4, v5p:2x2x2 or v6e:2x4, GPUs h100:8, several slices or nodes, 2xv5e:2x4, "
        "or one of a kind, v6e:1",
    )
    add("--what", type=_programs, default=["train"], metavar="NAMES", help="train,eval,prefill,decode; default train")
    add("--rows", type=positive_int, default=8, metavar="N", help="texts that prefill and decode work on; default 8")
    add_json_flag(parser)
    return parser.parse_strictly(argv)


def _topology(text: str) -> Any:
    from psann_jax.bench.topologies import parse_topology

    try:
        return parse_topology(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _programs(text: str) -> list[str]:
    found: list[str] = names(text)
    for name in found:
        if name not in _PROGRAMS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(_PROGRAMS)}")
    return found
