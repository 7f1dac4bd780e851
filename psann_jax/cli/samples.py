"""Writes sample texts of a run, continuations of its eval.prompts or of fixed ones: psann-jax samples --workdir=RUN.

A sweep does this for each of its runs, and its report shows the texts side by side.
"""

import argparse
import sys
from collections.abc import Sequence

from psann_jax.cli.flags import RunParser, load_options, output_location
from psann_jax.utils.buckets import written_to


def main(argv: Sequence[str]) -> None:
    """Writes the texts and prints the path of their file."""
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.runs.restore import load_text_run
    from psann_jax.runs.samples import SAMPLES, write_samples

    run = load_text_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    location = output_location(flags, SAMPLES)
    with written_to(location, "--out") as path:
        write_samples(path, run)
    print(location)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    about = "Continues the run's eval.prompts, or fixed ones, at temperatures 0 and 0.8, and writes the texts."
    parser = RunParser("samples", about, precision="auto")
    parser.add_argument("--out", metavar="FILE", help="the JSON file; default samples.json in the workdir")
    return parser.parse_strictly(argv)
