"""Writes the token coordinates of a gravity model as a page: psann-jax coordinates --workdir=RUN [--text=TEXT].

The page is one HTML file that needs no network: tokens in 3D, layer by layer, and what each attends to.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from psann_jax.cli.flags import RunParser, load_options, output_location
from psann_jax.utils.buckets import written_to
from psann_jax.utils.extras import require_extra
from psann_jax.utils.locations import given_location


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    flags = _parse(argv)
    require_extra("coordinates page", "plotly")
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.runs.coordinates import write_coordinates
    from psann_jax.runs.restore import load_text_run

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    workdir = given_location(flags.workdir, "--workdir")
    name = workdir.resolve().name if isinstance(workdir, Path) else workdir.name
    location = output_location(flags, "coordinates.html")
    with written_to(location, "--out") as path:
        write_coordinates(path, run, flags.text, name=name, max_tokens=flags.max_tokens)
    print(location)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "coordinates",
        "Writes a page that shows the tokens of a text in the coordinates of a trained run of base ngt.",
        precision="auto",
    )
    add = parser.add_argument
    add("--text", help="one document; default a fixed English one, the same for every run")
    add(
        "--max_tokens",
        type=int,
        metavar="N",
        help="only the first N tokens; the page grows with N * N; default 256, or the run's window if that is shorter",
    )
    add("--out", metavar="FILE", help="the page; default coordinates.html in the workdir")
    return parser.parse_strictly(argv)
