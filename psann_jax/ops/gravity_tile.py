"""Scores of one tile of gravity attention and their derivatives in closed form, for the tiled form and the kernel.

A tile holds the pairs of some queries and some keys, in arrays whose last two axes are the pairs, in either order.
Everything here is elementwise, so every array only has to be broadcastable to the tile.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from psann_jax.ops.gravity_scores import GravityForm, inverse
from psann_jax.ops.tiles import MASK_VALUE


class Strengths(NamedTuple):
    """Trained parameters of the scores, broadcastable to a tile.

    Attributes:
      gamma: positive factor.
      bias: added to the scores.
      radius: cutoff radius.
    """

    gamma: Array
    bias: Array
    radius: Array


class Pairs(NamedTuple):
    """What is known about the pairs of a tile besides their distance.

    Attributes:
      same: True where query and key are one token.
      visible: True where the query may see the key.
      self_score: the score of a token with itself, needed where `same` is true.
      mass_product: product of the masses, or None.
    """

    same: Array
    visible: Array
    self_score: Array
    mass_product: Array | None


@dataclass(frozen=True)
class Tile:
    """Scores of a tile and what their derivatives need."""

    pairs: Pairs
    d2: Array
    u: Array  # 1 / (d2 + eps)
    base: Array  # score without mass and cutoff
    massed: Array  # score without cutoff
    s: Array  # score, masked
    seen: Array  # True where the key is visible and not cut off


class TileGradients(NamedTuple):
    """Gradients of the pairs of a tile.

    Attributes:
      d2: of the squared distances; 0 where query and key are one token.
      massed: of the scores without cutoff.
      base: of the scores without cutoff and mass; also that of the bias.
      gamma: of gamma, times `GravityForm.sign`.
      cutoff: of the cutoff's factor, if the cutoff depends on the radius smoothly.
    """

    d2: Array
    massed: Array
    base: Array
    gamma: Array
    cutoff: Array | None


def score_tile(form: GravityForm, strengths: Strengths, d2: Array, pairs: Pairs) -> Tile:
    """Returns the scores of a tile with squared distances d2."""
    radius2, seen = jnp.square(strengths.radius), pairs.visible
    u = inverse(form, d2)
    base = form.sign * strengths.gamma * u + strengths.bias
    massed = s = base if pairs.mass_product is None else base * pairs.mass_product
    if form.cutoff == "soft":
        s = massed * jnp.maximum(1 - d2 / radius2, 0)
    elif form.cutoff == "hard":
        seen &= d2 <= radius2
    elif form.cutoff == "decay":
        seen &= d2 < radius2
        s = massed + jnp.log(jnp.where(seen, 1 - d2 / radius2, 1))
    # Both passes read a token's score with itself from one array: recomputed, it could differ in the last bit, and
    # for a token that sees only itself p = exp(s - lse) would then not be exactly 1.
    s = jnp.where(pairs.same, pairs.self_score, s)
    return Tile(pairs, d2, u, base, massed, jnp.where(seen, s, MASK_VALUE), seen)


def differentiate_tile(
    form: GravityForm, strengths: Strengths, t: Tile, p: Array, slope: Array, lse: Array
) -> TileGradients:
    """Differentiates the scores of a tile.

    Args:
      form: options of the score.
      strengths: trained parameters.
      t: the tile.
      p: the softmax weights.
      slope: p * slope is the gradient of the scores.
      lse: logsumexp of the scores per query.

    Returns:
      The gradients of every pair.
    """
    radius2, same = jnp.square(strengths.radius), t.pairs.same
    # The weight of a token that sees only itself is 1 for every score. Its gradient must be exactly 0, since the
    # derivatives of that score are of the order of 1 / eps.
    ds = jnp.where(same & ((p == 1) | form.attractive), 0, p * slope)
    massed, cutoff = ds, None
    if form.cutoff == "soft":
        massed = ds * jnp.maximum(1 - t.d2 / radius2, 0)
        cutoff = jnp.where(t.d2 < radius2, ds * t.massed, 0)
    elif form.cutoff == "decay":
        # The weight divided by 1 - d2 / r^2, which stays finite at the radius.
        cutoff = jnp.where(t.seen & ~same, jnp.exp(t.massed - lse) * slope, 0)
    base = massed if t.pairs.mass_product is None else massed * t.pairs.mass_product
    gamma = base * t.u
    d2 = -form.sign * strengths.gamma * gamma * t.u
    if cutoff is not None:
        d2 -= cutoff / radius2
    return TileGradients(jnp.where(same, 0, d2), massed, base, gamma, cutoff)
