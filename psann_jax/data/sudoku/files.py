"""Puzzles from CSV files: `source,question,answer,rating`, plain or compressed."""

import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from psann_jax.data.files import csv_lines, read_errors
from psann_jax.data.sudoku.puzzles import Puzzles, joined
from psann_jax.data.sudoku.rules import agrees, is_solved, parse_grid, parse_grids
from psann_jax.data.sudoku.solver import check_count, rate, solve
from psann_jax.utils.errors import UserError

_AT_ONCE = 1 << 14  # rows that are checked together

Row = tuple[int, str, str, str]  # line number, question, answer, rating


def read_puzzles(path: Path, *, ratings: str = "file", progress: bool = True) -> Puzzles:
    """All puzzles of a file, every one checked: its characters, its answer, and that it has no other.

    Args:
      path: a .csv with a header that names question, answer and, for `ratings` "file", rating; other columns are let
        be. Questions are 81 characters, `.` or `0` for empty cells.
      ratings: "file", or "guesses" to rate anew (see `psann_jax.data.sudoku.solver.rate`).
      progress: whether there is a bar, on stderr where that is a terminal.

    Raises:
      UserError: the file cannot be read or holds no puzzle, or a row is wrong; the message names the line.
    """
    parts = []
    with (
        read_errors(path),
        tqdm(unit=" puzzles", desc=f"checking {path.name}", disable=None if progress else True) as bar,
    ):
        rows = _rows(path, rated=ratings == "file")
        while chunk := list(itertools.islice(rows, _AT_ONCE)):
            parts.append(_checked(chunk, path, ratings))
            bar.update(len(chunk))
    if not parts:
        raise UserError(f"{path}: holds no puzzles")
    return joined(parts)


def _rows(path: Path, rated: bool) -> Iterator[Row]:
    reader = csv.reader(line for _, line in csv_lines(path))
    header = next(reader, [])
    wanted = ["question", "answer", "rating"] if rated else ["question", "answer"]
    for name in wanted:
        if name not in header:
            hint = "; set ratings to guesses to do without" if name == "rating" else ""
            raise UserError(f"{path}: line 1: names no column {name!r}, only {', '.join(header) or 'none'}{hint}")
    columns = [header.index(name) for name in wanted]
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise UserError(f"{path}: line {reader.line_num}: has {len(fields)} fields, must have {len(header)}")
        question, answer, *rating = (fields[column] for column in columns)
        yield reader.line_num, question, answer, rating[0] if rating else ""


def _checked(rows: list[Row], path: Path, ratings: str) -> Puzzles:
    lines, questions, answers, rating_texts = zip(*rows, strict=True)
    where = [f"{path}: line {line}" for line in lines]
    puzzles_Nx81, solutions_Nx81 = (
        _grids(texts, [f"{place}: {name}" for place in where])
        for name, texts in (("question", questions), ("answer", answers))
    )
    _refuse(~is_solved(solutions_Nx81), where, "answer: must fill all 81 cells")
    _refuse(~agrees(puzzles_Nx81, solutions_Nx81), where, "answer: does not hold the clues of the question")
    for place, count in zip(where, solve(puzzles_Nx81)[1].tolist(), strict=True):
        check_count(count, f"{place}: question")
    if ratings == "guesses":
        ratings_N = rate(puzzles_Nx81).astype(np.float64)
    else:
        ratings_N = np.array([_number(text, place) for text, place in zip(rating_texts, where, strict=True)])
    return Puzzles(puzzles_Nx81, solutions_Nx81, ratings_N)


def _grids(texts: tuple[str, ...], where: list[str]) -> np.ndarray:
    grids_Nx81 = parse_grids(list(texts))
    if grids_Nx81 is None:
        return np.stack([parse_grid(text, place) for text, place in zip(texts, where, strict=True)])
    return grids_Nx81


def _refuse(wrong_N: np.ndarray, where: list[str], message: str) -> None:
    if wrong_N.any():
        raise UserError(f"{where[int(np.argmax(wrong_N))]}: {message}")


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: rating: is {text!r}, must be a number; set ratings to guesses to rate anew")
    return value
