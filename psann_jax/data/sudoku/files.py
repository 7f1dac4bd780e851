"""Puzzles from CSV files with the columns question, answer and rating, or other names of these, plain or compressed."""

import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from psann_jax.data.files import csv_lines, read_errors
from psann_jax.data.sudoku.puzzles import Puzzles, concatenate
from psann_jax.data.sudoku.rules import has_clues_of, is_solved, parse_grid, parse_grids
from psann_jax.data.sudoku.solver import check_unique, rate, solve
from psann_jax.utils.errors import UserError

# Columns, by their name in sudoku-extreme, and what the large collections on Kaggle call them.
_COLUMNS = {
    "question": ("question", "quizzes", "puzzle"),
    "answer": ("answer", "solutions", "solution"),
    "rating": ("rating", "difficulty"),
}
_CHUNK = 1 << 14  # rows that are checked together

Row = tuple[int, str, str, str]  # line number, question, answer, rating


def read_puzzles(path: Path, *, ratings: str = "file", progress: bool = True) -> Puzzles:
    """Reads the puzzles of a file and checks each: its characters, its answer, and that the answer is unique.

    Args:
      path: a .csv file with a header that names the columns question, answer and, for `ratings` "file", rating; or
        quizzes or puzzle, solutions or solution, difficulty. Other columns are ignored. Questions have 81 characters,
        `.` or `0` for empty cells.
      ratings: "file" to use the ratings of the file, "guesses" to compute them, see `psann_jax.data.sudoku.solver`.
      progress: show a progress bar on stderr if that is a terminal.

    Raises:
      UserError: the file cannot be read or has no puzzles, or a row is invalid; the message names the line.
    """
    parts = []
    with (
        read_errors(path),
        tqdm(unit=" puzzles", desc=f"checking {path.name}", disable=None if progress else True) as bar,
    ):
        rows = _rows(path, rated=ratings == "file")
        while chunk := list(itertools.islice(rows, _CHUNK)):
            parts.append(_checked(chunk, path, ratings))
            bar.update(len(chunk))
    if not parts:
        raise UserError(f"{path}: has no puzzles")
    return concatenate(parts)


def _rows(path: Path, rated: bool) -> Iterator[Row]:
    reader = csv.reader(line for _, line in csv_lines(path))
    records = _records(reader, path)
    header = next(records, [])
    columns = [_column(header, name, path) for name in _COLUMNS if rated or name != "rating"]
    for fields in records:
        if not fields:
            continue
        if len(fields) != len(header):
            raise UserError(f"{path}: line {reader.line_num}: has {len(fields)} fields, must have {len(header)}")
        question, answer, *rating = (fields[column] for column in columns)
        yield reader.line_num, question, answer, rating[0] if rating else ""


def _records(reader: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as e:  # for example a quotation mark that is never closed
        raise UserError(f"{path}: line {reader.line_num}: is not CSV: {e}") from e


def _column(header: list[str], name: str, path: Path) -> int:
    """Returns the position of a column that has one of its known names."""
    found = [known for known in _COLUMNS[name] if known in header]
    if not found:
        hint = "; set ratings to guesses to compute them" if name == "rating" else ""
        raise UserError(f"{path}: line 1: has no column {name!r}, only {', '.join(header) or 'none'}{hint}")
    return header.index(found[0])


def _checked(rows: list[Row], path: Path, ratings: str) -> Puzzles:
    lines, questions, answers, rating_texts = zip(*rows, strict=True)
    where = [f"{path}: line {line}" for line in lines]
    puzzles_Nx81, solutions_Nx81 = (
        _grids(texts, [f"{row}: {name}" for row in where])
        for name, texts in (("question", questions), ("answer", answers))
    )
    _refuse(~is_solved(solutions_Nx81), where, "answer: must fill all 81 cells")
    _refuse(~has_clues_of(solutions_Nx81, puzzles_Nx81), where, "answer: differs from the clues of the question")
    _refuse(np.all(puzzles_Nx81 > 0, axis=1), where, "question: has no empty cell")
    for row, count in zip(where, solve(puzzles_Nx81)[1].tolist(), strict=True):
        check_unique(count, f"{row}: question")
    if ratings == "guesses":
        ratings_N = rate(puzzles_Nx81).astype(np.float64)
    else:
        ratings_N = np.array([_rating(text, row) for text, row in zip(rating_texts, where, strict=True)])
    return Puzzles(puzzles_Nx81, solutions_Nx81, ratings_N)


def _grids(texts: tuple[str, ...], where: list[str]) -> np.ndarray:
    grids_Nx81 = parse_grids(list(texts))
    if grids_Nx81 is None:  # parse one by one for the error message
        return np.stack([parse_grid(text, row) for text, row in zip(texts, where, strict=True)])
    return grids_Nx81


def _refuse(invalid_N: np.ndarray, where: list[str], message: str) -> None:
    if invalid_N.any():
        raise UserError(f"{where[int(np.argmax(invalid_N))]}: {message}")


def _rating(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: rating: is {text!r}, must be a number; or set ratings to guesses to compute them")
    return value
