"""Grids as arrays of 81 digits in rows, 0 for an empty cell, and what the rules say of them."""

import numpy as np

from psann_jax.utils.errors import UserError

N_CELLS = 81
EMPTY = ".0"


def _units() -> np.ndarray:
    cells_9x9 = np.arange(N_CELLS).reshape(9, 9)
    boxes_9x9 = cells_9x9.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
    return np.concatenate([cells_9x9, cells_9x9.T, boxes_9x9])


UNITS_27x9 = _units()  # the cells of the 9 rows, the 9 columns and the 9 boxes
_UNIT_NAMES = [f"{kind} {i + 1}" for kind in ("row", "column", "box") for i in range(9)]

_WRONG = 255
_DIGIT_OF_BYTE = np.full(256, _WRONG, np.uint8)
for _digit, _characters in enumerate((EMPTY, *"123456789")):
    _DIGIT_OF_BYTE[list(_characters.encode())] = _digit


def parse_grid(text: str, where: str = "puzzle") -> np.ndarray:
    """The grid of 81 characters, row by row; `.` and `0` stand for an empty cell.

    Args:
      text: the characters.
      where: what to name in an error: a flag, or a file and a line.

    Returns:
      (81,) uint8.

    Raises:
      UserError: another length, a foreign character, or the same digit twice in a row, column or box.
    """
    if len(text) != N_CELLS:
        raise UserError(f"{where}: has {len(text)} characters, must have {N_CELLS}: 1 to 9, and . or 0 for empty cells")
    grid = _DIGIT_OF_BYTE[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
    if _WRONG in grid:
        i = int(np.argmax(grid == _WRONG))
        raise UserError(
            f"{where}: {text[i]!r} at character {i + 1} is no digit; use 1 to 9, and . or 0 for empty cells"
        )
    check_clues(grid, where)
    return grid


def parse_grids(texts: list[str]) -> np.ndarray | None:
    """The grids (N, 81) of many texts at once; None if `parse_grid` would refuse any of them."""
    if any(len(text) != N_CELLS for text in texts):
        return None
    characters = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)
    grids_Nx81 = _DIGIT_OF_BYTE[characters].reshape(-1, N_CELLS)
    return None if (grids_Nx81 == _WRONG).any() or has_conflict(grids_Nx81).any() else grids_Nx81


def grid_text(grid_81: np.ndarray) -> str:
    """The 81 characters of a grid, `.` for an empty cell."""
    return "".join(".123456789"[digit] for digit in grid_81.tolist())


def drawn(grid_81: np.ndarray, clues_81: np.ndarray | None = None) -> str:
    """A grid in 13 lines with its boxes; cells that are empty are dots, those that are no clues stand in brackets."""
    rule = "+---------+---------+---------+"
    lines = [rule]
    for row in range(9):
        cells = []
        for cell in range(9 * row, 9 * row + 9):
            given = clues_81 is None or clues_81[cell] > 0 or not grid_81[cell]
            cells.append(f" {'.123456789'[grid_81[cell]]} " if given else f"({grid_81[cell]})")
        lines.append("|" + "|".join("".join(cells[box : box + 3]) for box in (0, 3, 6)) + "|")
        if row % 3 == 2:
            lines.append(rule)
    return "\n".join(lines)


def find_fault(grid_81: np.ndarray) -> str | None:
    """Which digit stands twice in which row, column or box, and at which characters; None if none does."""
    for name, unit in zip(_UNIT_NAMES, UNITS_27x9, strict=True):
        digits, counts = np.unique(grid_81[unit], return_counts=True)
        twice = digits[(counts > 1) & (digits > 0)]
        if len(twice):
            first, second = unit[grid_81[unit] == twice[0]][:2]
            return f"{twice[0]} stands twice in {name}, at characters {first + 1} and {second + 1}"
    return None


def check_clues(grid_81: np.ndarray, where: str) -> None:
    """Raises UserError if a digit stands twice in a row, column or box, and says where."""
    fault = find_fault(grid_81)
    if fault is not None:
        raise UserError(f"{where}: contradictory clues: {fault}")


def has_conflict(grids_Nx81: np.ndarray) -> np.ndarray:
    """Whether a digit stands twice in a row, column or box of each grid, (N,) bool."""
    return _digits_seen(grids_Nx81)[1]


def is_solved(grids_Nx81: np.ndarray) -> np.ndarray:
    """Whether each grid is full and follows the rules, (N,) bool."""
    once_Nx27, conflict_N = _digits_seen(grids_Nx81)
    return ~conflict_N & (once_Nx27 == 0b1111111110).all(axis=1)


def agrees(puzzles_Nx81: np.ndarray, solutions_Nx81: np.ndarray) -> np.ndarray:
    """Whether each solution holds every clue of its puzzle, (N,) bool."""
    return ((puzzles_Nx81 == 0) | (puzzles_Nx81 == solutions_Nx81)).all(axis=1)


def _digits_seen(grids_Nx81: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The digits in each unit as a set of bits (N, 27), and whether any occurs twice in a unit (N,)."""
    bits_Nx81 = np.where(grids_Nx81 > 0, 1 << grids_Nx81.astype(np.int32), 0)
    once = np.zeros((len(grids_Nx81), 27), np.int32)
    conflict = np.zeros(len(grids_Nx81), bool)
    for position in range(9):
        bit_Nx27 = bits_Nx81[:, UNITS_27x9[:, position]]
        conflict |= (once & bit_Nx27).any(axis=1)
        once |= bit_Nx27
    return once, conflict
