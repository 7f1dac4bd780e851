"""Puzzles from CSV files; every error names its line."""

import gzip
import lzma

import numpy as np
import pytest

from psann_jax.data.sudoku.files import read_puzzles
from psann_jax.data.sudoku.rules import grid_text
from psann_jax.data.sudoku.solver import rate
from psann_jax.utils.errors import UserError

QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
HEADER = "source,question,answer,rating"
GOOD = f"own,{QUESTION},{ANSWER},3"


def write(path, *lines):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.csv.xz", "P.CSV"])
def test_plain_and_compressed_files(tmp_path, name):
    zeros = QUESTION.replace(".", "0")
    path = write(tmp_path / name, HEADER, GOOD, "", f'"a, b",{zeros},{ANSWER},2.5')
    puzzles = read_puzzles(path, progress=False)
    assert [grid_text(p) for p in puzzles.puzzles_Nx81] == [QUESTION] * 2
    assert [grid_text(p) for p in puzzles.solutions_Nx81] == [ANSWER] * 2
    assert puzzles.ratings_N.tolist() == [3, 2.5]
    assert puzzles.puzzles_Nx81.dtype == np.uint8


def test_ratings_can_be_computed(tmp_path):
    path = write(tmp_path / "p.csv", "answer,question", f"{ANSWER},{QUESTION}")
    puzzles = read_puzzles(path, ratings="guesses", progress=False)
    assert puzzles.ratings_N.tolist() == rate(puzzles.puzzles_Nx81).tolist() == [0]


@pytest.mark.parametrize("header", ["quizzes,solutions", "puzzle,solution", "id,puzzle,solution,clues,difficulty"])
def test_the_column_names_of_kaggle(tmp_path, header):
    values = {"id": "1", "clues": "30", "difficulty": "2.5"}
    row = ",".join(values.get(name, ANSWER if "sol" in name else QUESTION) for name in header.split(","))
    path = write(tmp_path / "p.csv", header, row)
    rated = "difficulty" in header
    puzzles = read_puzzles(path, ratings="file" if rated else "guesses", progress=False)
    assert grid_text(puzzles.puzzles_Nx81[0]) == QUESTION
    assert puzzles.ratings_N.tolist() == [2.5 if rated else 0]


def test_line_ends_of_old_macs(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(f"{HEADER}\r{GOOD}\r{GOOD}\r".encode())
    assert len(read_puzzles(path, progress=False)) == 2


def test_a_quotation_mark_that_is_not_closed(tmp_path):
    path = write(tmp_path / "p.csv", HEADER, GOOD, '"' + GOOD, *[GOOD] * 1000)
    with pytest.raises(UserError, match=r"p\.csv: line \d+: is not CSV: field larger than field limit"):
        read_puzzles(path, progress=False)


SWAPPED = ANSWER.replace("1", "x").replace("2", "1").replace("x", "2")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"own,{QUESTION[:-1]},{ANSWER},3", "question: has 80 characters, must have 81"),
        (f"own,{QUESTION.replace('7', 'z')},{ANSWER},3", "question: 'z' at character 5 is not a digit"),
        (f"own,55{QUESTION[2:]},{ANSWER},3", "question: contradictory clues: 5 appears twice in row 1"),
        (f"own,{QUESTION},{ANSWER[:-1]},3", "answer: has 80 characters"),
        (f"own,{QUESTION},{QUESTION},3", "answer: must fill all 81 cells"),
        (f"own,{QUESTION},{SWAPPED},3", "answer: differs from the clues of the question"),
        (f"own,{'.' * 81},{ANSWER},3", "question: the puzzle has several solutions, must have one"),
        (f"own,{QUESTION},{ANSWER},hard", "rating: is 'hard', must be a number"),
        (f"own,{QUESTION},{ANSWER},", "rating: is '', must be a number; or set ratings to guesses to compute them"),
        (f"own,{QUESTION},{ANSWER},nan", "rating: is 'nan'"),
        (f"own,{QUESTION},{ANSWER}", "has 3 fields, must have 4"),
        (f"own,{ANSWER},{ANSWER},3", "question: has no empty cell"),
    ],
)
def test_errors_in_a_row_name_the_line(tmp_path, row, message):
    path = write(tmp_path / "p.csv", HEADER, GOOD, "", row, GOOD)
    with pytest.raises(UserError) as error:
        read_puzzles(path, progress=False)
    assert str(error.value).startswith(f"{path}: line 4: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("p.csv", [HEADER], "has no puzzles"),
        ("p.csv", [""], "line 1: has no column 'question', only none"),
        ("p.csv", ["question,answer"], "line 1: has no column 'rating', only question, answer; set ratings to"),
        ("p.txt", [HEADER, GOOD], "unknown file type; use .csv, plain or with .gz, .xz or .zst"),
    ],
)
def test_errors_in_a_file_name_the_file(tmp_path, name, lines, message):
    path = write(tmp_path / name, *lines)
    with pytest.raises(UserError) as error:
        read_puzzles(path, progress=False)
    assert str(error.value).startswith(f"{path}: {message}")


def test_damaged_and_missing_files_cannot_be_read(tmp_path):
    path = write(tmp_path / "p.csv.xz", HEADER, GOOD)
    path.write_bytes(path.read_bytes()[:-20])
    for bad in (path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            read_puzzles(bad, progress=False)
