"""Grids as arrays of 81 digits, row by row, 0 for an empty cell; the rules, and grids as text."""

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

_INVALID = 255
_DIGIT_OF_BYTE = np.full(256, _INVALID, np.uint8)
for _digit, _characters in enumerate((EMPTY, *"123456789")):
    _DIGIT_OF_BYTE[list(_characters.encode())] = _digit


def parse_grid(text: str, where: str = "puzzle") -> np.ndarray:
    """Parses 81 characters, row by row, `.` or `0` for an empty cell.

    Args:
      text: the characters.
      where: what to name in an error: a flag, or a file and a line.

    Returns:
      Digits (81,) uint8.

    Raises:
      UserError: the length is wrong, a character is invalid, or a digit appears twice in a row, column or box.
    """
    if len(text) != N_CELLS:
        raise UserError(f"{where}: has {len(text)} characters, must have {N_CELLS}: 1 to 9, and . or 0 for empty cells")
    grid = _DIGIT_OF_BYTE[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
    if _INVALID in grid:
        i = int(np.argmax(grid == _INVALID))
        raise UserError(
            f"{where}: {text[i]!r} at character {i + 1} is not a digit; use 1 to 9, and . or 0 for empty cells"
        )
    conflict = find_conflict(grid)
    if conflict is not None:
        raise UserError(f"{where}: contradictory clues: {conflict}")
    return grid


def parse_grids(texts: list[str]) -> np.ndarray | None:
    """Parses many texts at once to grids (N, 81); returns None if `parse_grid` would raise for any of them."""
    if any(len(text) != N_CELLS for text in texts):
        return None
    characters = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)
    grids_Nx81 = _DIGIT_OF_BYTE[characters].reshape(-1, N_CELLS)
    return None if (grids_Nx81 == _INVALID).any() or has_conflict(grids_Nx81).any() else grids_Nx81


def grid_text(grid_81: np.ndarray) -> str:
    """Returns a grid as 81 characters, `.` for an empty cell."""
    return "".join(".123456789"[digit] for digit in grid_81.tolist())


def draw_grid(grid_81: np.ndarray, clues_81: np.ndarray | None = None) -> str:
    """Returns a grid as 13 lines of text with its boxes.

    Args:
      grid_81: digits, 0 for empty cells, which are drawn as dots.
      clues_81: the puzzle; digits that are not its clues are drawn in parentheses. None: no digits are.
    """
    rule = "+---------+---------+---------+"
    lines = [rule]
    for row in range(9):
        cells = []
        for cell in range(9 * row, 9 * row + 9):
            plain = clues_81 is None or clues_81[cell] > 0 or not grid_81[cell]
            cells.append(f" {'.123456789'[grid_81[cell]]} " if plain else f"({grid_81[cell]})")
        lines.append("|" + "|".join("".join(cells[box : box + 3]) for box in (0, 3, 6)) + "|")
        if row % 3 == 2:
            lines.append(rule)
    return "\n".join(lines)


def find_conflict(grid_81: np.ndarray) -> str | None:
    """Returns which digit appears twice in which row, column or box, and where, as text; None if there is none."""
    for name, unit in zip(_UNIT_NAMES, UNITS_27x9, strict=True):
        digits, counts = np.unique(grid_81[unit], return_counts=True)
        repeated = digits[(counts > 1) & (digits > 0)]
        if len(repeated):
            first, second = unit[grid_81[unit] == repeated[0]][:2]
            return f"{repeated[0]} appears twice in {name}, at characters {first + 1} and {second + 1}"
    return None


def has_conflict(grids_Nx81: np.ndarray) -> np.ndarray:
    """Returns whether a digit appears twice in a row, column or box of each grid, (N,) bool."""
    return _digits_seen(grids_Nx81)[1]


def is_solved(grids_Nx81: np.ndarray) -> np.ndarray:
    """Returns whether each grid is full and follows the rules, (N,) bool."""
    once_Nx27, conflict_N = _digits_seen(grids_Nx81)
    return ~conflict_N & (once_Nx27 == 0b1111111110).all(axis=1)


def has_clues_of(grids_Nx81: np.ndarray, puzzles_Nx81: np.ndarray) -> np.ndarray:
    """Returns whether each grid contains every clue of its puzzle, (N,) bool."""
    return ((puzzles_Nx81 == 0) | (puzzles_Nx81 == grids_Nx81)).all(axis=1)


def _digits_seen(grids_Nx81: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of each unit as a bit set (N, 27), and whether any appears twice in a unit (N,)."""
    bits_Nx81 = np.where(grids_Nx81 > 0, 1 << grids_Nx81.astype(np.int32), 0)
    once = np.zeros((len(grids_Nx81), 27), np.int32)
    conflict = np.zeros(len(grids_Nx81), bool)
    for position in range(9):
        bit_Nx27 = bits_Nx81[:, UNITS_27x9[:, position]]
        conflict |= (once & bit_Nx27).any(axis=1)
        once |= bit_Nx27
    return once, conflict
