"""The symmetry group of Sudoku: the transformations that map valid grids to valid grids.

Digits can be relabelled (9!), bands, stacks, the rows of a band and the columns of a stack permuted (6^8), and the grid
transposed (2): 1,218,998,108,160 elements. The functions accept NumPy and JAX arrays with any leading axes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # a NumPy or JAX array

N_DRAWS = 34  # uniform numbers that select an element: 9 for digits, 3 + 9 for rows, 3 + 9 for columns, 1 to transpose


@dataclass(frozen=True)
class Symmetry:
    """An element of the group, or an array of them.

    Attributes:
      cells_x81: for each cell of the new grid, the cell of the old grid that moves there.
      digits_x10: for each old digit, the new one; 0, the empty cell, maps to itself.
    """

    cells_x81: Array
    digits_x10: Array

    def apply(self, grids_x81: Array) -> Array:
        """Returns the grids (..., 81), puzzles or solutions, each transformed by its element."""
        xp = grids_x81.__array_namespace__()
        moved_x81 = xp.take_along_axis(grids_x81, self.cells_x81, axis=-1)
        return xp.take_along_axis(self.digits_x10, moved_x81.astype(np.int32), axis=-1)


def symmetry(draws_x34: Array) -> Symmetry:
    """Maps `N_DRAWS` independent uniform numbers in [0, 1) to an element; all elements have the same probability.

    With JAX, ``symmetry(jax.random.uniform(key, (B, N_DRAWS)))`` draws an element for each of B puzzles.
    """
    xp = draws_x34.__array_namespace__()
    digits_x9, rows_x12, columns_x12, transpose_x1 = (
        draws_x34[..., a:b] for a, b in ((0, 9), (9, 21), (21, 33), (33, 34))
    )
    rows_x9x1 = _line_order(rows_x12)[..., :, None]
    columns_x1x9 = _line_order(columns_x12)[..., None, :]
    cells_x9x9 = 9 * rows_x9x1 + columns_x1x9
    transposed_x9x9 = rows_x9x1 + 9 * columns_x1x9
    cells = xp.where(transpose_x1[..., None] < 0.5, cells_x9x9, transposed_x9x9)
    labels_x9 = 1 + xp.argsort(digits_x9, axis=-1)
    digits = xp.concat([xp.zeros_like(labels_x9[..., :1]), labels_x9], axis=-1)
    return Symmetry(cells.reshape(*draws_x34.shape[:-1], 81), digits.astype(np.uint8))


def _line_order(draws_x12: Array) -> Array:
    """Returns a permutation (..., 9) of nine lines that keeps the three lines of a band together."""
    xp = draws_x12.__array_namespace__()
    bands_x3x1 = xp.argsort(draws_x12[..., :3], axis=-1)[..., None]
    within_x3x3 = xp.argsort(draws_x12[..., 3:].reshape(*draws_x12.shape[:-1], 3, 3), axis=-1)
    return (3 * bands_x3x1 + within_x3x3).reshape(*draws_x12.shape[:-1], 9)
