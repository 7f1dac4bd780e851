"""Scores and weights of gravity attention, from squared distances.

For tokens with coordinates a and a distance d2_ij = |a_i - a_j|^2 the score is -gamma / (d2_ij + eps) + bias. It grows
with the distance: the softmax prefers far tokens, and a token does not see itself (its score is -gamma / eps), unless
there is no other. `attractive` turns the sign: near tokens are preferred, and the token itself is masked.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import tiles

# The score of an attractive token with itself: below all others, above the masked ones, so that a token without
# any other has itself.
SELF = -1e20

dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True)
class GravityForm:
    """How a score follows from distance, mass and radius; static.

    Attributes:
      attractive: whether near tokens are preferred; False: far ones, as in the original.
      cutoff: what happens beyond the radius r. hard: the token is masked. soft: the score is multiplied by
        max(1 - d2/r^2, 0), which makes it 0, the highest score there is without attraction. decay: the weight is
        multiplied by it, so that it falls to nothing at the radius. none: nothing.
      eps: added to squared distances.
      rsqrt: forms 1 / (d2 + eps) as rsqrt(d2 + eps)^2.
      dropout_rate: share of the attention weights that is dropped.
    """

    attractive: bool = False
    cutoff: Literal["hard", "soft", "decay", "none"] = "hard"
    eps: float = 1e-6
    rsqrt: bool = False
    dropout_rate: float = 0.0

    @property
    def sign(self) -> int:
        """Of gamma in the score."""
        return 1 if self.attractive else -1


def squared_distances(a_BxLxHxC: Array) -> Array:
    """Squared distances (B, H, L, L) of the coordinates of the heads, in float32 at least."""
    a = a_BxLxHxC.astype(jnp.promote_types(a_BxLxHxC.dtype, jnp.float32)).swapaxes(1, 2)
    norm = jnp.sum(a * a, -1)
    return expanded_distances(a, a, norm, norm, jnp.eye(a.shape[2], dtype=bool))


def gravity_weights(
    form: GravityForm,
    d2_BxHxLxL: Array,
    gamma_H: Array,
    bias_H: Array,
    radius: Array,
    mass_BxL: Array | None,
    segment_ids_BxL: Array | None,
) -> Array:
    """The weights (B, H, L, L) that `gravity_attention` gives, for squared distances."""
    back_LxL, visible = tiles.visible_whole(d2_BxHxLxL.shape[-1], segment_ids_BxL)
    product = None if mass_BxL is None else mass_BxL[:, :, None] * mass_BxL[:, None]
    s = scores(form, d2_BxHxLxL, gamma_H, bias_H, jnp.square(radius), product)
    if form.attractive:
        s = jnp.where(back_LxL == 0, SELF, s)
    return jax.nn.softmax(jnp.where(visible, s, tiles.MASKED))


def inverse(form: GravityForm, d2: Array) -> Array:
    return jnp.square(lax.rsqrt(d2 + form.eps)) if form.rsqrt else 1 / (d2 + form.eps)


def base_scores(form: GravityForm, u: Array, gamma_H: Array, bias_H: Array) -> Array:
    """The score without mass and cutoff, from u = 1 / (d2 + eps) of shape (B, H, L, S)."""
    return form.sign * gamma_H[:, None, None] * u + bias_H[:, None, None]


def times(x: Array, product: Array | None) -> Array:
    """x (B, H, L, S) times the products of masses (B, L, S), if any."""
    return x if product is None else x * product[:, None]


def scores(form: GravityForm, d2: Array, gamma_H: Array, bias_H: Array, radius2: Array, product: Array | None) -> Array:
    """Scores (B, H, L, S) of distances (B, H, L, S) and products of masses (B, L, S)."""
    s = times(base_scores(form, inverse(form, d2), gamma_H, bias_H), product)
    if form.cutoff == "hard":
        return jnp.where(d2 > radius2, tiles.MASKED, s)
    if form.cutoff == "soft":
        return s * jax.nn.relu(1 - d2 / radius2)
    if form.cutoff == "decay":
        inside = d2 < radius2
        return jnp.where(inside, s + jnp.log(jnp.where(inside, 1 - d2 / radius2, 1)), tiles.MASKED)
    return s


def expanded_distances(a: Array, b: Array, norm_a: Array, norm_b: Array, same: Array) -> Array:
    """Squared distances (B, H, L, S) of a (B, H, L, C) and b (B, H, S, C), exactly 0 where both are the same token.

    Rounding is harmless where far tokens are preferred: it matters only for tiny distances, whose weight is 0.
    """
    product = dot("bhik,bhjk->bhij", a, b)
    return jnp.where(same, 0, jnp.maximum(norm_a[..., None] + norm_b[..., None, :] - 2 * product, 0))
