"""Token coordinates, masses and attention of a gravity model on one text, layer by layer."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evolution:
    """One text of L tokens in a gravity model of N layers, in float64.

    Attributes:
      mass_L: masses of the tokens.
      coordinates_KxLxC: initial coordinates, which depend on the position only, then those after each layer; K = N + 1.
      weights_NxLxL: attention weights (queries, keys), averaged over heads.
    """

    mass_L: np.ndarray
    coordinates_KxLxC: np.ndarray
    weights_NxLxL: np.ndarray

    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return all(np.isfinite(a).all() for a in (self.mass_L, self.coordinates_KxLxC, self.weights_NxLxL))


@dataclass(frozen=True)
class Projection:
    """Coordinates projected on the three principal components of the last layer.

    Attributes:
      points_KxLx3: projected coordinates of all layers.
      variance_fractions_Kx3: fraction of each layer's own variance along each axis; 0 for a layer without variance.
        The last row is the explained variance of the fit.
    """

    points_KxLx3: np.ndarray
    variance_fractions_Kx3: np.ndarray


def project(coordinates_KxLxC: np.ndarray) -> Projection:
    """Projects all layers on the principal components of the last one.

    The sign of each axis makes its largest loading positive, so that equal runs give equal plots. With fewer than three
    coordinates or four tokens, the missing axes are 0.

    Args:
      coordinates_KxLxC: from `Evolution`.
    """
    z_LxC = coordinates_KxLxC[-1]
    mean_C = z_LxC.mean(axis=0)
    axes = np.linalg.svd(z_LxC - mean_C, full_matrices=False)[2][:3]
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    axes_3xC = np.zeros((3, z_LxC.shape[1]))
    axes_3xC[: len(axes)] = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
    points_KxLx3 = (coordinates_KxLxC - mean_C) @ axes_3xC.T
    total_Kx1 = coordinates_KxLxC.var(axis=1).sum(axis=-1, keepdims=True)
    along_Kx3 = points_KxLx3.var(axis=1)
    return Projection(points_KxLx3, np.divide(along_Kx3, total_Kx1, out=np.zeros_like(along_Kx3), where=total_Kx1 > 0))
