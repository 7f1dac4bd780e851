"""Solves Sudoku puzzles with a trained network: psann-jax solve --workdir=RUN [--puzzle=TEXT | --data=FILE.csv].

With --puzzle it prints one solution. Otherwise it solves many puzzles, by default the run's validation puzzles, and
prints the fraction solved by number of iterations and rating.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from psann_jax.cli.flags import RunParser, load_options
from psann_jax.utils.buckets import written_to
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import require_writable
from psann_jax.utils.locations import given_location

if TYPE_CHECKING:
    from psann_jax.runs.restore import LoadedRun

_UNSOLVED = 1  # exit code
_DELAY, _MAX_DELAY = 0.1, 60  # seconds between the iterations that --watch shows on a terminal
_REST, _REST_TOLERANCE = 8, 1e-4  # iterations without a change of any probability that end --watch
_GREEN, _RED, _END = "\x1b[32m", "\x1b[31m", "\x1b[0m"
_OF_ONE, _OF_MANY = ("watch", "delay", "pictures"), ("max_puzzles", "batch_size", "never_stop")


def main(argv: Sequence[str]) -> None:
    """Prints a grid or a table; exits with code 1 if the one puzzle is not solved."""
    flags = _parse(argv)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.data.sudoku.rules import parse_grid
    from psann_jax.data.sudoku.solver import solve_one

    puzzle = None
    if flags.puzzle is not None:
        puzzle = parse_grid(flags.puzzle, "--puzzle")
        solution = solve_one(puzzle, "--puzzle")  # raises unless there is exactly one
        if flags.pictures:
            if np.all(puzzle):
                raise UserError("--pictures: there is nothing to show of a puzzle without an empty cell")
            require_writable(Path(flags.pictures), "--pictures")
    from psann_jax.config import PuzzlesConfig
    from psann_jax.runs.restore import load_run

    run = load_run(flags.workdir, flags.checkpoint, data_section=PuzzlesConfig, **load_options(flags))
    print(f"{flags.workdir}: step {run.step}", file=sys.stderr)
    if puzzle is not None:
        _solve_one(run, puzzle, solution, flags)
    else:
        _solve_many(run, flags)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = RunParser("solve", "Solves Sudoku puzzles with the network of a trained run.", precision="auto")
    add = parser.add_argument
    add("--puzzle", metavar="TEXT", help="one puzzle: 81 characters, row by row, with . or 0 for an empty cell")
    add("--data", metavar="FILE", help="a CSV with question, answer and rating; default the run's validation puzzles")
    add("--iterations", type=int, default=1024, metavar="N", help="maximum number of iterations; default 1024")
    add("--json", action="store_true", help="print one JSON object instead of grids and tables")
    add(
        "--watch",
        action="store_true",
        help="with --puzzle: show the grid after every iteration, up to a fixed point",
    )
    add("--delay", type=float, metavar="S", help="with --watch: seconds between iterations; default 0.1 on a terminal")
    add("--pictures", metavar="DIR", help="with --puzzle: write confidence.png and attention.png there")
    add("--max_puzzles", type=int, metavar="N", help="without --puzzle: only N puzzles, of all ratings in proportion")
    add("--batch_size", type=int, metavar="N", help="without --puzzle: puzzles per batch; default 256")
    add("--never_stop", action="store_true", help="without --puzzle: run all iterations even for solved puzzles")
    flags = parser.parse_strictly(argv)
    if flags.puzzle is not None and flags.data is not None:
        parser.error("--data: cannot be used together with --puzzle")
    kind, others = ("with", _OF_MANY) if flags.puzzle is not None else ("without", _OF_ONE)
    for name in others:
        if getattr(flags, name):
            parser.error(f"--{name}: has no effect {kind} --puzzle")
    if flags.watch and flags.json:
        parser.error("--watch: cannot be used together with --json")
    if flags.delay is not None and not flags.watch:
        parser.error("--delay: has no effect without --watch")
    if flags.delay is not None and not 0 <= flags.delay <= _MAX_DELAY:
        parser.error(f"--delay: is {flags.delay}, must be from 0 to {_MAX_DELAY} seconds")
    for name in ("iterations", "max_puzzles", "batch_size"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            parser.error(f"--{name}: is {getattr(flags, name)}, must be at least 1")
    return flags


# --- one puzzle -----------------------------------------------------------------------------------------


def _solve_one(run: "LoadedRun", puzzle_81: np.ndarray, solution_81: np.ndarray, flags: argparse.Namespace) -> None:
    from psann_jax.data.sudoku.rules import draw_grid, find_conflict, grid_text, is_solved
    from psann_jax.runs.sudoku_solver import trace

    grids, probabilities, at_rest = [], [], False
    for probabilities_81x9, grid_81 in trace(run, puzzle_81, iterations=flags.iterations):
        probabilities.append(probabilities_81x9)
        grids.append(grid_81)
        if flags.watch:
            _show(grid_81, puzzle_81, len(grids), flags.delay)
            at_rest = _is_at_rest(probabilities)
        if at_rest:
            break
    solved = bool(is_solved(grids[-1][None])[0])
    if flags.json:
        answer = {"puzzle": grid_text(puzzle_81), "grid": grid_text(grids[-1]), "solved": solved}
        print(json.dumps({"workdir": flags.workdir, **answer, "iterations": len(grids)}))
    else:
        if not flags.watch:
            print(draw_grid(grids[-1], puzzle_81))
        verdict = f"solved: valid after {len(grids)} iterations"
        fixed = ", at a fixed point" if at_rest else ""
        fault = f"not solved after {len(grids)} iterations{fixed}: {find_conflict(grids[-1])}"
        print(verdict if solved else fault)
    if flags.pictures:
        _draw(run, puzzle_81, solution_81, np.stack(probabilities), Path(flags.pictures))
    if not solved:
        raise SystemExit(_UNSOLVED)


def _is_at_rest(probabilities: Sequence[np.ndarray]) -> bool:
    """Whether no probability, and so no digit, has changed in the last iterations."""
    last = probabilities[-_REST - 1 :]
    return len(last) > _REST and bool(np.max(np.ptp(np.stack(last), axis=0)) < _REST_TOLERANCE)


def _show(grid_81: np.ndarray, puzzle_81: np.ndarray, iteration: int, delay: float | None) -> None:
    """Prints a grid and waits; on a terminal it overwrites the previous one, in colour."""
    from psann_jax.data.sudoku.rules import draw_grid

    grid, on_terminal = draw_grid(grid_81, puzzle_81), sys.stdout.isatty()
    if on_terminal and iteration > 1:
        print(f"\x1b[{grid.count(chr(10)) + 2}A", end="")
    if on_terminal and "NO_COLOR" not in os.environ:
        grid = _coloured(grid, grid_81, puzzle_81)
    print(f"iteration {iteration}\n{grid}", flush=True)
    time.sleep(delay if delay is not None else _DELAY if on_terminal else 0)


def _coloured(drawn: str, grid_81: np.ndarray, puzzle_81: np.ndarray) -> str:
    """Shows the digits in parentheses, which are no clues, in green instead, or in red if a unit has them twice."""
    from psann_jax.data.sudoku.rules import UNITS_27x9

    is_twice_81 = np.zeros(81, bool)
    for unit in UNITS_27x9:
        is_twice_81[unit] |= np.bincount(grid_81[unit], minlength=10)[grid_81[unit]] > 1
    colours = iter(np.where(is_twice_81, _RED, _GREEN)[puzzle_81 == 0].tolist())
    return re.sub(r"\((\d)\)", lambda digit: f"{next(colours)} {digit[1]} {_END}", drawn)


def _draw(
    run: "LoadedRun", puzzle_81: np.ndarray, solution_81: np.ndarray, probabilities_Tx81x9: np.ndarray, directory: Path
) -> None:
    from psann_jax.plots.sudoku import draw_attention, draw_confidence
    from psann_jax.runs.sudoku_solver import attention_weights

    cell = int(np.flatnonzero(puzzle_81 == 0)[0])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draw_confidence(directory / "confidence.png", puzzle_81, solution_81, probabilities_Tx81x9)
        weights = attention_weights(run, puzzle_81, iteration=len(probabilities_Tx81x9))
        draw_attention(directory / "attention.png", weights[:, :, cell], puzzle_81, cell)
    except OSError as error:
        raise UserError(f"--pictures: cannot write to {directory}: {error.strerror}") from error
    print(f"figures in {directory}", file=sys.stderr)


# --- many puzzles ---------------------------------------------------------------------------------------


def _solve_many(run: "LoadedRun", flags: argparse.Namespace) -> None:
    from psann_jax.plots.sudoku import draw_accuracy
    from psann_jax.runs.sudoku_solver import select_puzzles, solve
    from psann_jax.tasks.sudoku_scores import fractions_of, left_out

    puzzles = select_puzzles(run, flags.data, flags.max_puzzles, progress=True)
    found = solve(
        run,
        puzzles.puzzles_Nx81,
        iterations=flags.iterations,
        stop_at_valid=not flags.never_stop,
        batch_size=flags.batch_size or 256,
        progress=True,
    )
    print(puzzles.describe(), file=sys.stderr)
    if rare := left_out(puzzles.buckets_N):
        print(rare, file=sys.stderr)
    n_solved = int(found.valid_NxM[:, -1].sum())
    rate = n_solved / found.seconds if found.seconds else 0.0
    speed = f"{n_solved:,} of {len(puzzles):,} solved in {found.seconds:.1f} s, compilation excluded"
    print(f"{speed}: {rate:,.1f} solved puzzles/s", file=sys.stderr)
    rows = {m: fractions_of(found.valid_NxM[:, i], puzzles.buckets_N) for i, m in enumerate(found.marks_M)}
    if flags.json:
        results = [{"iterations": m, **fractions} for m, fractions in rows.items()]
        facts = {"workdir": flags.workdir, "step": run.step, "puzzles": len(puzzles), "solved_per_s": rate}
        print(json.dumps({**facts, "results": results}))
    else:
        print(_table(rows))
    found_rows = {m: fractions_of(found.found_NxM[:, i], puzzles.buckets_N) for i, m in enumerate(found.marks_M)}
    location = given_location(flags.workdir, "--workdir") / "accuracy_by_iterations.png"
    try:
        with written_to(location, "--workdir") as path:
            draw_accuracy(path, found_rows, rows if flags.never_stop else None)
    except OSError as error:
        print(f"{location}: not written: {error.strerror}", file=sys.stderr)


def _table(rows: dict[int, dict[str, float]]) -> str:
    """Percentages with 95 % intervals, one line for each number of iterations."""
    from psann_jax.tasks.sudoku_scores import BOUNDS

    names = [name for name in next(iter(rows.values())) if not name.endswith(BOUNDS)]
    titles = [name.removeprefix("solved").removeprefix("_") or "all" for name in names]
    lines = ["iterations" + "".join(f"{title:>19}" for title in titles)]
    for iterations, fractions in rows.items():
        percent = {name: f"{100 * fraction:.1f}" for name, fraction in fractions.items()}
        cells = (f"{percent[name]} ({percent[f'{name}_low']}-{percent[f'{name}_high']})" for name in names)
        lines.append(f"{iterations:>10}" + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join((*lines, "% of the puzzles solved, by rating, with 95 % intervals"))
