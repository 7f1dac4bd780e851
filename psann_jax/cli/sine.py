"""Shows how training changed a run's sine activations: psann-jax sine --workdir=RUN.

Draws the distributions of amplitude, frequency and damping by layer, before and after, and prints their medians.
"""

import argparse
import sys
from collections.abc import Sequence

from psann_jax.cli.flags import RunParser, load_options, output_location
from psann_jax.utils.buckets import written_to
from psann_jax.utils.files import storage_errors


def main(argv: Sequence[str]) -> None:
    """Writes the figure, prints the medians and its path."""
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    import numpy as np

    from psann_jax.plots.sine import VALUES, draw_sine
    from psann_jax.runs.restore import load_run
    from psann_jax.runs.sine import sine_history

    run = load_run(flags.workdir, flags.checkpoint, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    location = output_location(flags, "sine_parameters.png")
    values = sine_history(run)
    with written_to(location, "--out") as path, storage_errors(path):
        draw_sine(path, values["before"], values["after"], run.step)
    before = values["before"]
    start = run.config.train.init_from or "other weights"
    print("medians before -> after" if before else f"medians after training, which started from {start}")
    print(f"{'layer':<12}" + "".join(f"{name:>24}" for name in VALUES))
    for place, after in values["after"].items():
        medians = [np.median(v[place], axis=2) for v in (before, values["after"]) if v]
        for layer in range(after.shape[1]):
            steps = zip(*(m[:, layer] for m in medians), strict=True)
            cells = (" -> ".join(f"{median:.4f}" for median in step) for step in steps)
            print(f"{f'{place} {layer + 1}':<12}" + "".join(f"{cell:>24}" for cell in cells))
    print(location)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "sine", "Draws amplitude, frequency and damping of a run before and after training.", precision="run"
    )
    parser.add_argument("--out", metavar="FILE", help="the figure; default sine_parameters.png in the workdir")
    return parser.parse_strictly(argv)
