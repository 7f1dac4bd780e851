"""Scores and weights of gravity attention, from squared distances.

Two tokens with coordinates a_i and a_j have the squared distance d2_ij = |a_i - a_j|^2 and the score
-gamma / (d2_ij + eps) + bias. The score grows with the distance, so the softmax prefers far tokens. A token's score
with itself is -gamma / eps, so it ignores itself unless it sees no other token. `attractive` flips the sign: near
tokens are preferred, and a token's score with itself is `SELF_SCORE`.

Shapes: B batch, H heads, L queries, S keys, C coordinates per head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import tiles

# The score of a token with itself if attractive: below all other scores but above masked ones, so that a token that
# sees no other one attends to itself.
SELF_SCORE = -1e20

dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True)
class GravityForm:
    """Static options of the gravity score.

    Attributes:
      attractive: prefers near tokens; False prefers far ones, as in the original.
      cutoff: effect of the radius r. "hard" masks tokens beyond it. "soft" multiplies the score by
        max(1 - d2/r^2, 0), so it is 0 beyond the radius, the highest score unless attractive. "decay" multiplies the
        weight by the same factor, so it falls to 0 at the radius. "none" ignores the radius.
      eps: added to squared distances.
      rsqrt: computes 1 / (d2 + eps) as rsqrt(d2 + eps)^2.
      dropout_rate: fraction of the attention weights to drop.
    """

    attractive: bool = False
    cutoff: Literal["hard", "soft", "decay", "none"] = "hard"
    eps: float = 1e-6
    rsqrt: bool = False
    dropout_rate: float = 0.0

    @property
    def sign(self) -> int:
        """Sign of gamma in the score."""
        return 1 if self.attractive else -1


class GravityParams(NamedTuple):
    """Trained parameters of the scores.

    Attributes:
      gamma_H: positive factor per head.
      bias_H: added to the scores.
      radius: cutoff radius, a scalar; unused if the cutoff is "none".
    """

    gamma_H: Array
    bias_H: Array
    radius: Array


class GravityInputs(NamedTuple):
    """Arrays of gravity attention.

    Attributes:
      a_BxLxHxC: coordinates per head.
      v_BxLxHxK: values.
      params: of the scores.
      mass_BxL: if given, multiplies the scores, bias included, by the product of both masses.
      segment_ids_BxL: document of each token; None: one document per row.
      dropout_key: PRNG key; None disables dropout.
    """

    a_BxLxHxC: Array
    v_BxLxHxK: Array
    params: GravityParams
    mass_BxL: Array | None = None
    segment_ids_BxL: Array | None = None
    dropout_key: Array | None = None


def self_scores(form: GravityForm, x: GravityInputs) -> Array:
    """Returns the score of every token with itself, (B, L, H)."""
    B, L, H, _ = x.a_BxLxHxC.shape
    if form.attractive:
        return jnp.full((B, L, H), SELF_SCORE, x.a_BxLxHxC.dtype)
    self_score_BxLxH = jnp.broadcast_to(-x.params.gamma_H / form.eps + x.params.bias_H, (B, L, H))
    return self_score_BxLxH if x.mass_BxL is None else self_score_BxLxH * jnp.square(x.mass_BxL)[..., None]


def squared_distances(a_BxLxHxC: Array) -> Array:
    """Returns the squared distances between all tokens per head, (B, H, L, L), in float32 or wider."""
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
    """Returns the attention weights of `gravity_attention` without dropout, (B, H, L, L).

    Args:
      form: options of the score.
      d2_BxHxLxL: squared distances.
      gamma_H: positive factor per head.
      bias_H: added to the scores.
      radius: cutoff radius, a scalar.
      mass_BxL: masses to multiply the scores by, or None.
      segment_ids_BxL: document of each token; None: one document per row.
    """
    lag_LxL, visible_BxHxLxL = tiles.window_visible(d2_BxHxLxL.shape[-1], segment_ids_BxL)
    mass_product = None if mass_BxL is None else mass_BxL[:, :, None] * mass_BxL[:, None]
    s = scores(form, d2_BxHxLxL, gamma_H, bias_H, jnp.square(radius), mass_product)
    if form.attractive:
        s = jnp.where(lag_LxL == 0, SELF_SCORE, s)
    return jax.nn.softmax(jnp.where(visible_BxHxLxL, s, tiles.MASK_VALUE))


def inverse(form: GravityForm, d2: Array) -> Array:
    """Returns 1 / (d2 + eps)."""
    return jnp.square(lax.rsqrt(d2 + form.eps)) if form.rsqrt else 1 / (d2 + form.eps)


def base_scores(form: GravityForm, u: Array, gamma_H: Array, bias_H: Array) -> Array:
    """Returns the scores without mass and cutoff, (B, H, L, S), from u = 1 / (d2 + eps) of the same shape."""
    return form.sign * gamma_H[:, None, None] * u + bias_H[:, None, None]


def multiply_mass(x: Array, mass_product: Array | None) -> Array:
    """Multiplies x (B, H, L, S) by the products of masses (B, L, S), if any."""
    return x if mass_product is None else x * mass_product[:, None]


def scores(
    form: GravityForm, d2: Array, gamma_H: Array, bias_H: Array, radius2: Array, mass_product: Array | None
) -> Array:
    """Returns the scores (B, H, L, S) for squared distances (B, H, L, S) and products of masses (B, L, S)."""
    s = multiply_mass(base_scores(form, inverse(form, d2), gamma_H, bias_H), mass_product)
    if form.cutoff == "hard":
        return jnp.where(d2 > radius2, tiles.MASK_VALUE, s)
    if form.cutoff == "soft":
        return s * jax.nn.relu(1 - d2 / radius2)
    if form.cutoff == "decay":
        inside = d2 < radius2
        return jnp.where(inside, s + jnp.log(jnp.where(inside, 1 - d2 / radius2, 1)), tiles.MASK_VALUE)
    return s


def expanded_distances(a: Array, b: Array, norm_a: Array, norm_b: Array, same: Array) -> Array:
    """Returns the squared distances of a and b, (B, H, L, S), as |a|^2 + |b|^2 - 2ab, without an array of differences.

    Cancellation affects only tiny distances. It is harmless where far tokens are preferred, as their weight is 0.

    Args:
      a: coordinates (B, H, L, C).
      b: coordinates (B, H, S, C).
      norm_a: |a|^2, (B, H, L).
      norm_b: |b|^2, (B, H, S).
      same: bool, broadcastable to (B, H, L, S); True where a and b belong to one token, whose distance is exactly 0.
    """
    product = dot("bhik,bhjk->bhij", a, b)
    return jnp.where(same, 0, jnp.maximum(norm_a[..., None] + norm_b[..., None, :] - 2 * product, 0))
