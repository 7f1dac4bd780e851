"""How the tokens of one text move through the coordinates of a gravity model, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from psann_jax.models.network import Params
from psann_jax.runs.restore import TextRun
from psann_jax.train.mesh import batch_shards


@dataclass(frozen=True)
class Evolution:
    """One text of L tokens in a gravity model of N layers, all float64.

    Attributes:
      mass_L: of the tokens.
      coordinates_KxLxC: of the positions, then after each layer; K = N + 1.
      weights_NxLxL: attention weights, mean over heads; row i holds those that token i gives.
    """

    mass_L: np.ndarray
    coordinates_KxLxC: np.ndarray
    weights_NxLxL: np.ndarray

    def is_finite(self) -> bool:
        """Whether there is no NaN or infinity in it."""
        return all(np.isfinite(a).all() for a in (self.mass_L, self.coordinates_KxLxC, self.weights_NxLxL))


def evolve(run: TextRun, ids: Sequence[int]) -> Evolution:
    """Runs a gravity model on the tokens of one text."""

    def inspect(params: Params, tokens_BxL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = run.network.merge(params).inspect(tokens_BxL)
        return seen["mass"][0], seen["coordinates"][:, 0], jnp.mean(seen["weights"][:, 0], axis=1)

    # One row for every part of the mesh that a batch is divided over; all are the same.
    tokens_BxL = jnp.tile(jnp.asarray(ids, jnp.int32), (batch_shards(run.mesh), 1))
    with jax.set_mesh(run.mesh):
        arrays = jax.device_get(jax.jit(inspect)(run.params, tokens_BxL))
    return Evolution(*(array.astype(np.float64) for array in arrays))


@dataclass(frozen=True)
class Projection:
    """Coordinates along the three principal components of the last layer's.

    Attributes:
      points_KxLx3: of all layers along the same axes.
      shares_Kx3: of each layer's own variance, what lies along each axis; 0 where a layer has no variance. The last
        row is the explained variance of the fit.
    """

    points_KxLx3: np.ndarray
    shares_Kx3: np.ndarray


def project(coordinates_KxLxC: np.ndarray) -> Projection:
    """Principal component analysis, fitted on the last layer and used for all.

    Each axis points to where its largest loading is positive, so that equal runs give equal pictures. With less than
    three coordinates or four tokens, the axes that are missing are 0.
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
