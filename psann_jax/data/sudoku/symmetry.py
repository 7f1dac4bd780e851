"""The symmetry group of Sudoku: what may be done to a grid that leaves a valid one valid.

Digits may be renamed (9!), bands, stacks, the rows of a band and the columns of a stack reordered (6^8), and the grid
transposed (2): 1,218,998,108,160 elements. The functions take NumPy and JAX arrays alike, with any leading axes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # of NumPy or JAX

N_DRAWS = 34  # uniform numbers that choose an element: 9 digits, 3 + 9 for rows, 3 + 9 for columns, 1 to transpose


@dataclass(frozen=True)
class Symmetry:
    """An element of the group, or an array of them.

    Attributes:
      cells_x81: the cell of the old grid that comes to each cell of the new one.
      digits_x10: the new digit of each old one; 0, the empty cell, stays.
    """

    cells_x81: Array
    digits_x10: Array

    def apply(self, grids_x81: Array) -> Array:
        """The grids (..., 81), each under its element; puzzles and solutions alike."""
        xp = grids_x81.__array_namespace__()
        moved_x81 = xp.take_along_axis(grids_x81, self.cells_x81, axis=-1)
        return xp.take_along_axis(self.digits_x10, moved_x81.astype(np.int32), axis=-1)


def symmetry(draws_x34: Array) -> Symmetry:
    """The element that `N_DRAWS` independent uniform numbers in [0, 1) choose, every one with the same probability.

    For JAX, ``symmetry(jax.random.uniform(key, (B, N_DRAWS)))`` gives an element for each of B puzzles.
    """
    xp = draws_x34.__array_namespace__()
    digits_x9, rows_x12, columns_x12, transpose_x1 = (
        draws_x34[..., a:b] for a, b in ((0, 9), (9, 21), (21, 33), (33, 34))
    )
    rows_x9x1 = _order_of_lines(rows_x12)[..., :, None]
    columns_x1x9 = _order_of_lines(columns_x12)[..., None, :]
    cells_x9x9 = 9 * rows_x9x1 + columns_x1x9
    transposed_x9x9 = rows_x9x1 + 9 * columns_x1x9
    cells = xp.where(transpose_x1[..., None] < 0.5, cells_x9x9, transposed_x9x9)
    names_x9 = 1 + xp.argsort(digits_x9, axis=-1)
    digits = xp.concat([xp.zeros_like(names_x9[..., :1]), names_x9], axis=-1)
    return Symmetry(cells.reshape(*draws_x34.shape[:-1], 81), digits.astype(np.uint8))


def _order_of_lines(draws_x12: Array) -> Array:
    """An order (..., 9) of nine lines that keeps the three of a band together."""
    xp = draws_x12.__array_namespace__()
    bands_x3x1 = xp.argsort(draws_x12[..., :3], axis=-1)[..., None]
    within_x3x3 = xp.argsort(draws_x12[..., 3:].reshape(*draws_x12.shape[:-1], 3, 3), axis=-1)
    return (3 * bands_x3x1 + within_x3x3).reshape(*draws_x12.shape[:-1], 9)
