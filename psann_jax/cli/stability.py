"""Shows what becomes of Sudoku solutions over many iterations: psann-jax stability --workdir=RUN [--data=FILE.csv].

Writes stability.json and stability.png, and prints a table: at 1, 2, 4, ... iterations the valid grids, those lost and
regained on the way, and how much still changes; then the spectral radii of the iteration at solved and broken states.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from psann_jax.cli.flags import RunParser, load_options
from psann_jax.utils.buckets import written_to
from psann_jax.utils.files import require_writable, storage_errors, write_json
from psann_jax.utils.locations import given_location


def main(argv: Sequence[str]) -> None:
    """Writes both files, prints the tables and their paths."""
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.config import PuzzlesConfig
    from psann_jax.plots.sudoku_stability import draw_stability
    from psann_jax.runs.restore import load_run
    from psann_jax.runs.sudoku_solver import select_puzzles
    from psann_jax.runs.sudoku_stability import follow, radii_of_groups, summarise

    out_flag = "--out" if flags.out else "--workdir"
    location = given_location(flags.out or flags.workdir, out_flag)
    require_writable(location, out_flag)  # now, because the work may take hours
    run = load_run(flags.workdir, flags.checkpoint, data_section=PuzzlesConfig, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    puzzles = select_puzzles(run, flags.data, flags.max_puzzles, progress=True)
    print(puzzles.describe(), file=sys.stderr)
    found = follow(run, puzzles, iterations=flags.iterations, batch_size=flags.batch_size, progress=True)
    summary = summarise(found)
    radii = radii_of_groups(run, puzzles, found, n_each=flags.radii)
    print("\n".join((*_counts(summary), "", *_radii(radii))))
    with written_to(location, "--out") as out, storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        facts = {"workdir": flags.workdir, "step": run.step, "trained_iterations": run.network.config.iterations}
        write_json(out / "stability.json", facts | {"puzzles": len(puzzles)} | summary | {"radii": radii})
        draw_stability(out / "stability.png", summary, radii)
    print(location / "stability.json")
    print(location / "stability.png")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser(
        "stability", "Follows Sudoku puzzles over many iterations, without a stop at a valid grid.", precision="auto"
    )
    add = parser.add_argument
    add("--data", metavar="FILE", help="a CSV with question, answer and rating; default the run's validation puzzles")
    add("--iterations", type=int, default=256, metavar="N", help="number of iterations; default 256")
    add("--max_puzzles", type=int, metavar="N", help="only N puzzles, of all ratings in proportion; default all")
    add("--batch_size", type=int, default=256, metavar="N", help="puzzles per batch; default 256")
    add("--radii", type=int, default=8, metavar="N", help="spectral radii of N puzzles of each kind; default 8")
    add("--out", metavar="DIR", help="where to write stability.json and stability.png; default the workdir")
    flags = parser.parse_strictly(argv)
    for name in ("iterations", "max_puzzles", "batch_size", "radii"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            parser.error(f"--{name}: is {getattr(flags, name)}, must be at least 1")
    return flags


def _counts(summary: Mapping[str, Any]) -> list[str]:
    """The table of valid grids, at doublings of the number of iterations and at the last."""
    from psann_jax.runs.sudoku_solver import marks_up_to

    names = ("newly_solved", "regained", "broken")
    lines = [f"{'iterations':>10}{'valid':>8}" + "".join(f"{name:>14}" for name in names)]
    rows, begin = summary["iterations"], 0
    for mark in marks_up_to(len(rows), 1):
        sums = (sum(row[name] for row in rows[begin:mark]) for name in names)
        lines.append(f"{mark:>10}{rows[mark - 1]['valid']:>8}" + "".join(f"{n:>14}" for n in sums))
        begin = mark
    return [*lines, "puzzles: valid after so many iterations; events since the line before"]


def _radii(radii: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of spectral radii and of the growth of the state."""
    import numpy as np

    lines = [f"{'':<24}{'puzzles':>8}{'radius':>9}{'least':>9}{'most':>9}{'growth':>9}"]
    for group, state in dict.fromkeys((r["group"], r["state"]) for r in radii):
        chosen = [r for r in radii if (r["group"], r["state"]) == (group, state)]
        values, growth = np.array([(r["radius"], r["growth"]) for r in chosen]).T
        numbers = (np.median(values), values.min(), values.max(), np.median(growth))
        lines.append(f"{f'{group}, {state}':<24}{len(chosen):>8}" + "".join(f"{x:>9.3f}" for x in numbers))
    return [*lines, "spectral radius of an iteration and growth of the state in it, medians over puzzles"]
