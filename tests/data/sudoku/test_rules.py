"""Grids as text, and the rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.data.sudoku.rules import (
    UNITS_27x9,
    grid_text,
    has_clues_of,
    has_conflict,
    is_solved,
    parse_grid,
    parse_grids,
)
from psann_jax.utils.errors import UserError

SOLVED = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))


def test_every_cell_is_in_a_row_a_column_and_a_box():
    assert UNITS_27x9.shape == (27, 9)
    for kind in range(3):
        assert sorted(UNITS_27x9[9 * kind : 9 * kind + 9].ravel()) == list(range(81))
    # The cells of a box are in three adjacent rows and three adjacent columns.
    for box in UNITS_27x9[18:]:
        rows, columns = np.divmod(box, 9)
        assert len(set(rows // 3)) == len(set(columns // 3)) == 1


@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 80)))
def test_parsing_and_formatting_are_inverse(empty):
    text = "".join("." if i in empty else d for i, d in enumerate(SOLVED))
    assert grid_text(parse_grid(text)) == grid_text(parse_grid(text.replace(".", "0"))) == text
    assert parse_grid(text).dtype == np.uint8
    assert parse_grids([text, SOLVED]).tolist() == [parse_grid(text).tolist(), parse_grid(SOLVED).tolist()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1" * 80, r"has 80 characters, must have 81"),
        ("", r"has 0 characters"),
        (SOLVED[:40] + "x" + SOLVED[41:], r"'x' at character 41 is not a digit"),
        ("." * 80 + "é", r"'é' at character 81 is not a digit"),
        ("." * 80 + "\u4e00", r"'\u4e00' at character 81 is not a digit"),
        ("5.......5" + "." * 72, r"contradictory clues: 5 appears twice in row 1, at characters 1 and 9"),
        ("7" + "." * 35 + "7" + "." * 44, r"contradictory clues: 7 appears twice in column 1, at characters 1 and 37"),
        ("2" + "." * 9 + "2" + "." * 70, r"contradictory clues: 2 appears twice in box 1, at characters 1 and 11"),
    ],
)
def test_errors_name_the_character(text, message):
    with pytest.raises(UserError, match=f"^f.csv: line 3: {message}") as error:
        parse_grid(text, "f.csv: line 3")
    assert "\n" not in str(error.value)
    assert parse_grids([SOLVED, text]) is None


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 80), st.integers(0, 9))
def test_a_changed_cell_is_detected(cell, digit):
    grid = parse_grid(SOLVED)
    changed = grid.copy()
    changed[cell] = digit
    both = np.stack([grid, changed])
    same = bool(grid[cell] == digit)
    assert is_solved(both).tolist() == [True, same]
    assert has_conflict(both).tolist() == [False, not same and digit > 0]
    assert has_clues_of(grid[None], both).tolist() == [True, same or digit == 0]
