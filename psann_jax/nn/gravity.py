"""Attention by distance and mass, and the loss that keeps coordinates apart."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import NGTConfig, RepulsionConfig, require
from psann_jax.nn.context import Context, LayerCache, append
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constant, constrain, param
from psann_jax.ops.gravity_attention import cached_gravity_attention, gravity_attention
from psann_jax.ops.gravity_scores import GravityForm, gravity_weights, squared_distances

_CLOSEST = 1e-3  # distances below it repel no more


class Masses(NamedTuple):
    """Masses of the tokens of a window and, with a cache, of its slots.

    Attributes:
      tokens_BxL: positive, at least float32.
      cached_BxS: of the slots, the window's tokens among them; None without a cache.
    """

    tokens_BxL: jax.Array
    cached_BxS: jax.Array | None = None


class GravityAttention(nnx.Module):
    """The mean of the values of the earlier tokens of the document, weighted by their distance and mass.

    Coordinates, scores and the softmax are in float32 whatever the compute type is.
    """

    def __init__(self, config: NGTConfig, *, rngs: nnx.Rngs):
        """Args: config; rngs."""
        self.config = config
        d, h, initial = config.d_model, config.n_heads, INITIALS[config.init]
        self.form = GravityForm(
            attractive=config.variant == "attractive",
            cutoff=config.cutoff,
            eps=config.eps or (0.1 if config.variant == "attractive" else 1e-6),
            rsqrt=config.rsqrt,
        )
        self.v = Linear((d, d), ("embed", "heads"), bias=True, initial=initial, rngs=rngs)
        self.o = Linear((d, d), ("heads", "embed"), bias=True, initial=initial, rngs=rngs)
        shape = (config.d_coord, h * config.d_head_coord)
        # What can change nothing is frozen, or rounding would move it: a constant in all coordinates, or in all scores
        # of a row; a radius at which weights only jump.
        self.coords = Linear(
            shape, (None, "heads"), bias=True, bias_learns=False, kind="coordinate", initial=initial, rngs=rngs
        )
        self.gamma = param(rngs, constant(0.0), (h,), "gravity", ("heads",))
        self.bias_acts = config.mass == "score" or config.cutoff == "soft"
        self.radius_learns = config.cutoff in ("soft", "decay")
        self.bias = param(rngs, constant(0.0), (h,), "gravity", ("heads",), trainable=self.bias_acts)
        self.radius = param(rngs, constant(config.radius_init), (1,), "gravity", (None,), trainable=self.radius_learns)

    def __call__(
        self,
        x_BxLxD: jax.Array,
        z_BxLxC: jax.Array,
        masses: Masses,
        context: Context,
        cache: LayerCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Attends within the window or, with a cache, to everything in it.

        Args:
          x_BxLxD: normalised input.
          z_BxLxC: coordinates.
          masses: of the tokens.
          context: shared arrays.
          cache: {"a" (B, H, S, head coordinates), "v" (B, H, S, K)}, or None.
          key: for dropout of the weights, or None.

        Returns:
          (B, L, D) and the cache with the new entries.
        """
        c = self.config
        a, v = self._coordinates_and_values(x_BxLxD, z_BxLxC, masses)
        in_score = c.mass == "score"
        if cache is None:
            out = gravity_attention(
                replace(self.form, dropout_rate=c.dropout if key is not None else 0.0),
                a,
                v,
                *self.strengths(),
                mass_BxL=masses.tokens_BxL if in_score else None,
                segment_ids_BxL=context.segment_ids_BxL,
                dropout_key=key,
                implementation=c.attention,
            )
            out = constrain(out, "batch", None, "heads", None)  # its gradient above all, see `Attention`
            return self.o(out.reshape(x_BxLxD.shape)), {}
        assert context.slots_BxL is not None
        updated = {name: append(cache[name], new, context.slots_BxL) for name, new in (("a", a), ("v", v))}
        out = cached_gravity_attention(
            self.form,
            a,
            updated["a"].swapaxes(1, 2),
            updated["v"].swapaxes(1, 2),
            *self.strengths(),
            context.reach_BxL,
            mass_BxL=masses.tokens_BxL if in_score else None,
            cached_mass_BxS=masses.cached_BxS if in_score else None,
        )
        return self.o(out.reshape(x_BxLxD.shape)), updated

    def strengths(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """gamma (H,), bias (H,) and the radius, a scalar; what is frozen has no gradient."""
        bias = self.bias[...] if self.bias_acts else jax.lax.stop_gradient(self.bias[...])
        radius = self.radius[0] if self.radius_learns else jax.lax.stop_gradient(self.radius[0])
        return jax.nn.softplus(self.gamma[...]), bias, jax.nn.softplus(radius)

    def weights(
        self, x_BxLxD: jax.Array, z_BxLxC: jax.Array, masses: Masses, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Attention weights and squared distances, each (B, H, L, L), of a window; for inspection."""
        a, _ = self._coordinates_and_values(x_BxLxD, z_BxLxC, masses)
        d2 = squared_distances(a)
        mass = masses.tokens_BxL if self.config.mass == "score" else None
        return gravity_weights(self.form, d2, *self.strengths(), mass, context.segment_ids_BxL), d2

    def _coordinates_and_values(
        self, x_BxLxD: jax.Array, z_BxLxC: jax.Array, masses: Masses
    ) -> tuple[jax.Array, jax.Array]:
        c = self.config
        lead = x_BxLxD.shape[:2]
        a = self.coords(z_BxLxC).reshape(*lead, c.n_heads, c.d_head_coord)
        v = self.v(x_BxLxD).reshape(*lead, c.n_heads, c.d_model // c.n_heads)
        if c.mass == "value":
            v = v * masses.tokens_BxL[..., None, None].astype(v.dtype)
        return constrain(a, "batch", None, "heads", None), constrain(v, "batch", None, "heads", None)


def repulsion(
    z_BxLxC: jax.Array,
    mass_BxL: jax.Array,
    segment_ids_BxL: jax.Array | None,
    config: RepulsionConfig,
    key: jax.Array | None,
) -> jax.Array:
    """Mean of m_i m_j / max(|z_i - z_j|, 0.001)^alpha over the pairs of a row's tokens of one document.

    Args:
      z_BxLxC: coordinates.
      mass_BxL: masses.
      segment_ids_BxL: document numbers, 0 for padding; None: one document a row.
      config: alpha, and how many tokens are drawn, the same places for all rows.
      key: of the draw; None: all tokens.

    Returns:
      (B,), 0 for a row without a pair.

    Raises:
      ConfigError: a window of one token has no pairs.
    """
    L = z_BxLxC.shape[1]
    require(L > 1, "model.repulsion.weight", "needs windows of two tokens at least; set it to 0")
    if key is not None and config.tokens < L:
        places = jax.random.permutation(key, L)[: config.tokens]
        z_BxLxC, mass_BxL = z_BxLxC[:, places], mass_BxL[:, places]
        segment_ids_BxL = None if segment_ids_BxL is None else segment_ids_BxL[:, places]
    n = z_BxLxC.shape[1]
    pair_1xTxT = jnp.triu(jnp.ones((n, n), bool), 1)[None]
    if segment_ids_BxL is not None:
        own = segment_ids_BxL[:, :, None]
        pair_1xTxT = pair_1xTxT & (own == segment_ids_BxL[:, None]) & (own > 0)
    d2 = jnp.sum(jnp.square(z_BxLxC[:, :, None] - z_BxLxC[:, None]), axis=-1)
    d2 = jnp.maximum(d2, _CLOSEST**2)
    each = mass_BxL[:, :, None] * mass_BxL[:, None] / (d2 if config.alpha == 2 else d2 ** (config.alpha / 2))
    return jnp.sum(jnp.where(pair_1xTxT, each, 0), (1, 2)) / jnp.maximum(jnp.sum(pair_1xTxT, (1, 2)), 1)
