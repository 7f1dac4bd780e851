"""Measures the server: psann-jax bench serve [--config=FILE] [--clients=64] [--peer=psannlm]."""

import argparse
from collections.abc import Sequence

from psann_jax.cli.bench.result import add_json_flag, show
from psann_jax.cli.flags import ConfigParser, positive_int, read_config
from psann_jax.sample.settings import Sampling


def main(argv: Sequence[str]) -> None:
    """Prints tokens/s and seconds per request for each number of clients."""
    flags = _parse(argv)
    config = read_config(flags)
    sampling = Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p)
    sampling.check()
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.bench.served import Load, measure, report

    sizes = (flags.slots, flags.prompt_tokens, flags.max_new_tokens, flags.repeats)
    result = measure(config, sampling, Load(flags.clients or (1, 64), *sizes), peer_name=flags.peer)
    show(report(result), result, flags.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser(
        "bench serve",
        "Measures the server's tokens/s with random weights and prompts, alone or against psannlm without a server.",
        default_file="configs/proxy_13m.py",
        default_overrides=("train.precision=fp32",),
    )
    add = parser.add_argument
    add("--peer", choices=("psannlm",), help="compare with this implementation, which gets one request at a time")
    add(
        "--clients",
        action="append",
        type=positive_int,
        metavar="N",
        help="clients that send a request at once; can be repeated; default 1 and 64",
    )
    add(
        "--slots",
        type=positive_int,
        default=16,
        metavar="N",
        help="texts that the server generates at once; default 16",
    )
    add("--prompt_tokens", type=positive_int, default=64, metavar="N", help="length of each prompt; default 64")
    add("--max_new_tokens", type=positive_int, default=128, metavar="N", help="tokens generated per text; default 128")
    add("--repeats", type=positive_int, default=3, metavar="N", help="requests of each client; default 3")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 takes the most probable token; default 1")
    add("--top_k", type=int, default=0, metavar="K", help="sample from the K most probable tokens; default 0, all")
    add("--top_p", type=float, default=0.9, metavar="P", help="sample from the tokens that sum to P; default 0.9")
    add_json_flag(parser)
    return parser.parse_strictly(argv)
