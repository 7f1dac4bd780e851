"""Serves trained runs as OpenAI's API does: psann-jax serve --workdir=RUN [--workdir=RUN ...].

The server is on this machine only, and has no authentication. http://127.0.0.1:8000 is a page to try the models.
"""

import argparse
import ipaddress
import sys
from collections.abc import Sequence

from psann_jax.cli.flags import RunParser, load_options, positive_int
from psann_jax.utils.extras import require_extra

_DEFAULT_PORT = 8000


def main(argv: Sequence[str]) -> None:
    """Loads the runs, prints what they need and the address, and answers requests until a signal."""
    flags = _parse(argv)
    require_extra("serve", "starlette", "uvicorn")
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.runs.restore import load_text_run
    from psann_jax.serve.served import Limits, Served, by_name
    from psann_jax.serve.server import Server, bind

    runs = by_name(flags.workdir)
    bound = bind(flags.host, flags.port)
    if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
        print(f"note: --host={flags.host}: everybody who reaches this address can use the models", file=sys.stderr)
    limits = Limits(flags.slots, flags.queue, flags.max_length)
    models = {}
    for name, workdir in runs.items():
        models[name] = Served(name, load_text_run(str(workdir), flags.checkpoint, **load_options(flags)), limits)
        print(models[name].describe(), file=sys.stderr, flush=True)
    server = Server(models, bound, flags.host)
    print(f"ready on {server.url}", flush=True)
    server.answer()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    about = "Serves language models as OpenAI's API does, under the names of the folders of their runs."
    parser = RunParser("serve", about, precision="auto", takes_several=True)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1, this machine only")
    add("--port", type=_port, default=_DEFAULT_PORT, metavar="N", help=f"default {_DEFAULT_PORT}; 0 takes a free one")
    add("--slots", type=positive_int, default=16, metavar="N", help="texts that a model generates at once; default 16")
    add("--queue", type=positive_int, default=256, metavar="N", help="texts that wait for a model; default 256")
    add(
        "--max_length",
        type=positive_int,
        metavar="N",
        help="most tokens of a prompt and its completion; less takes less memory; default the window of the training",
    )
    return parser.parse_strictly(argv)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"is {text[:80]!r}, must be a whole number below {2**16}")
    return int(text)
