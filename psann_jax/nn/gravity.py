"""Attention by distance and mass, and the repulsion loss that keeps coordinates apart."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import RepulsionConfig, require
from psann_jax.nn.context import Context, LayerCache, append
from psann_jax.nn.initial import XAVIER, Initial, uniform_by_inputs
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constant, constrain, param, per_shard, shard_of
from psann_jax.ops import kernels
from psann_jax.ops.attention_dropout import MaskWords, words_if_dropped
from psann_jax.ops.gravity_attention import (
    GravityCache,
    cached_gravity_attention,
    choose_for,
    dropout_words,
    gravity_attention,
)
from psann_jax.ops.gravity_kernel import gravity_kernel, kernel_target
from psann_jax.ops.gravity_ring import ring_gravity
from psann_jax.ops.gravity_scores import (
    GravityForm,
    GravityInputs,
    GravityParams,
    gravity_weights,
    squared_distances,
)
from psann_jax.ops.mixed_precision import scale
from psann_jax.ops.tiles import Dropout

_MIN_DISTANCE = 1e-3  # the repulsion is constant below it
_HEADS = ("batch", "time", "heads", None)  # axes of coordinates and values per head


class Masses(NamedTuple):
    """Masses of the tokens in a window and, with a cache, in its slots.

    Attributes:
      tokens_BxL: positive, at least float32.
      cached_BxS: of all slots, including the window's tokens; None without a cache.
    """

    tokens_BxL: jax.Array
    cached_BxS: jax.Array | None = None


@dataclass(frozen=True)
class GravityOptions:
    """Sizes and options of `GravityAttention`.

    Attributes:
      d_model: features.
      n_heads: heads, which divide the features.
      d_coord: coordinates per token.
      d_head_coord: coordinates per head.
      form: how scores follow from distances; its dropout_rate is not used.
      mass: whether masses multiply the scores or the values.
      radius_init: the initial radius before its softplus.
      dropout: rate on the attention weights.
      implementation: auto, pallas, tiled or plain, see `psann_jax.ops.gravity_attention.choose_gravity`.
    """

    d_model: int
    n_heads: int
    d_coord: int
    d_head_coord: int
    form: GravityForm
    mass: Literal["score", "value"] = "score"
    radius_init: float = 4.0
    dropout: float = 0.0
    implementation: str = "auto"


class GravityAttention(nnx.Module):
    """Mean of the values of the earlier tokens of the document, weighted by their distance and mass.

    Coordinates, scores and the softmax are computed in float32 at least.
    """

    def __init__(self, options: GravityOptions, *, initial: Initial = XAVIER, rngs: nnx.Rngs):
        self.options = options
        d, h = options.d_model, options.n_heads
        self.v = Linear((d, d), ("embed", "heads"), bias=True, initial=initial, rngs=rngs)
        self.o = Linear((d, d), ("heads", "embed"), bias=True, initial=initial.of_outputs(), rngs=rngs)
        shape = (options.d_coord, h * options.d_head_coord)
        # Parameters without an effect are frozen, because rounding errors would move them: a constant in all
        # coordinates or in all scores of a row, and a radius at which the weights are discontinuous.
        # Not `initial`: with small kernels all distances would be about 0 at the start, and far below the radius.
        apart = replace(initial, kernel=uniform_by_inputs)
        self.coords = Linear(
            shape, (None, "heads"), bias=True, bias_learns=False, kind="coordinate", initial=apart, rngs=rngs
        )
        self.gamma = param(rngs, constant(0.0), (h,), "gravity", ("heads",))
        self.bias_acts = options.mass == "score" or options.form.cutoff == "soft"
        self.radius_learns = options.form.cutoff in ("soft", "decay")
        self.bias = param(rngs, constant(0.0), (h,), "gravity", ("heads",), trainable=self.bias_acts)
        self.radius = param(rngs, constant(options.radius_init), (1,), "gravity", (None,), trainable=self.radius_learns)

    def __call__(
        self,
        x_BxLxD: jax.Array,
        z_BxLxC: jax.Array,
        masses: Masses,
        context: Context,
        cache: LayerCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Attends within the window or, with a cache, to all that it holds.

        Args:
          x_BxLxD: normalised input.
          z_BxLxC: coordinates.
          masses: of the tokens.
          context: shared arrays.
          cache: {"a" (B, H, S, head coordinates), "v" (B, H, S, K)}, or None.
          key: for dropout on the weights, or None.

        Returns:
          (B, L, D) and the cache with the new entries.
        """
        options = self.options
        a, v = self._coordinates_and_values(x_BxLxD, z_BxLxC, masses)
        in_score = options.mass == "score"
        mass_BxL = masses.tokens_BxL if in_score else None
        if cache is None:
            form = replace(options.form, dropout_rate=options.dropout if key is not None else 0.0)
            inputs = GravityInputs(a, v, self.strengths(), mass_BxL, context.segment_ids_BxL, key)
            out = attend(form, inputs, options.implementation)
            out = constrain(out, *_HEADS)  # mainly for its gradient, see `Attention`
            return self.o(out.reshape(x_BxLxD.shape)), {}
        assert context.slots_BxL is not None
        updated = {name: append(cache[name], new, context.slots_BxL) for name, new in (("a", a), ("v", v))}
        slots = GravityCache(
            updated["a"].swapaxes(1, 2), updated["v"].swapaxes(1, 2), masses.cached_BxS if in_score else None
        )
        out = cached_gravity_attention(options.form, a, self.strengths(), slots, context.reach_BxL, mass_BxL=mass_BxL)
        return self.o(out.reshape(x_BxLxD.shape)), updated

    def strengths(self) -> GravityParams:
        """Returns the effective parameters of the scores; frozen ones have no gradient."""
        bias = self.bias[...] if self.bias_acts else jax.lax.stop_gradient(self.bias[...])
        radius = self.radius[0] if self.radius_learns else jax.lax.stop_gradient(self.radius[0])
        return GravityParams(jax.nn.softplus(self.gamma[...]), bias, jax.nn.softplus(radius))

    def weights(
        self, x_BxLxD: jax.Array, z_BxLxC: jax.Array, masses: Masses, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Returns attention weights and squared distances of a window, each (B, H, L, L); for inspection."""
        a, _ = self._coordinates_and_values(x_BxLxD, z_BxLxC, masses)
        d2 = squared_distances(a)
        mass = masses.tokens_BxL if self.options.mass == "score" else None
        return gravity_weights(self.options.form, d2, *self.strengths(), mass, context.segment_ids_BxL), d2

    def _coordinates_and_values(
        self, x_BxLxD: jax.Array, z_BxLxC: jax.Array, masses: Masses
    ) -> tuple[jax.Array, jax.Array]:
        c = self.options
        lead = x_BxLxD.shape[:2]
        a = self.coords(z_BxLxC).reshape(*lead, c.n_heads, c.d_head_coord)
        v = self.v(x_BxLxD).reshape(*lead, c.n_heads, c.d_model // c.n_heads)
        if c.mass == "value":
            v = scale(v, masses.tokens_BxL[..., None, None])
        return constrain(a, *_HEADS), constrain(v, *_HEADS)


def attend(form: GravityForm, inputs: GravityInputs, implementation: str) -> jax.Array:
    """Computes `gravity_attention`; a kernel runs on each device of the mesh for its rows and heads.

    Args:
      form: options of the score.
      inputs: the arrays.
      implementation: see `psann_jax.ops.gravity_attention.choose_gravity`; "tiled" replaces the kernel for arrays that
        the mesh cannot split into equal parts.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    even = not shard_of(inputs.v_BxLxHxK.shape, _HEADS)[1]
    if not even and implementation in ("auto", "pallas"):
        # A kernel needs equal parts. Training demands them of its batches, but not of the few rows that it inspects.
        implementation = "tiled"
    chosen = choose_for(form, inputs, implementation, even=even)
    if chosen not in ("pallas", "ring"):
        return gravity_attention(form, inputs, implementation=chosen)

    # Dropped weights depend on the row and head in the whole batch, so the words are drawn before the split.
    words: Any
    words_axes: Any
    if chosen == "ring":
        words = words_if_dropped(Dropout(inputs.dropout_key, form.dropout_rate), inputs.v_BxLxHxK.shape)
        words_axes = MaskWords._make([("batch", "heads"), (None,)])
        run = partial(ring_gravity, form)
    else:
        words, words_axes = dropout_words(form, inputs), ("batch", "heads", None)
        run = partial(gravity_kernel, form, target=kernel_target(kernels.platform(), inputs.v_BxLxHxK))
    inputs = inputs._replace(dropout_key=None)

    row = ("batch", "time")
    params = GravityParams._make([("heads",), ("heads",), ()])
    optional = [None if x is None else row for x in (inputs.mass_BxL, inputs.segment_ids_BxL)]
    axes = GravityInputs._make([_HEADS, _HEADS, params, *optional, None])
    out: jax.Array = per_shard(run, (axes, None if words is None else words_axes), _HEADS)(inputs, words)
    return out


def repulsion(
    z_BxLxC: jax.Array,
    mass_BxL: jax.Array,
    segment_ids_BxL: jax.Array | None,
    config: RepulsionConfig,
    key: jax.Array | None,
) -> jax.Array:
    """Mean of m_i m_j / max(|z_i - z_j|, 0.001)^alpha over the pairs of tokens of the same document in each row.

    Args:
      z_BxLxC: coordinates.
      mass_BxL: masses.
      segment_ids_BxL: document of each token, 0 for padding; None: one document per row.
      config: alpha, and how many tokens are sampled, at the same positions in all rows.
      key: for sampling; None uses all tokens.

    Returns:
      (B,), 0 for rows without a pair.

    Raises:
      ConfigError: the window has a single token.
    """
    L = z_BxLxC.shape[1]
    require(L > 1, "model.repulsion.weight", "needs windows of at least two tokens; set it to 0")
    if key is not None and config.tokens < L:
        positions = jax.random.permutation(key, L)[: config.tokens]
        z_BxLxC, mass_BxL = z_BxLxC[:, positions], mass_BxL[:, positions]
        segment_ids_BxL = None if segment_ids_BxL is None else segment_ids_BxL[:, positions]
    n = z_BxLxC.shape[1]
    pair_1xTxT = jnp.triu(jnp.ones((n, n), bool), 1)[None]
    if segment_ids_BxL is not None:
        own = segment_ids_BxL[:, :, None]
        pair_1xTxT = pair_1xTxT & (own == segment_ids_BxL[:, None]) & (own > 0)
    d2 = jnp.sum(jnp.square(z_BxLxC[:, :, None] - z_BxLxC[:, None]), axis=-1)
    # Before the power: of a distance of 0, its gradient may overflow, and 0 times that is NaN.
    d2 = jnp.where(pair_1xTxT, jnp.maximum(d2, _MIN_DISTANCE**2), 1.0)
    masses = mass_BxL[:, :, None] * mass_BxL[:, None]
    # Not a division by d^alpha: its gradient divides by d^(2 alpha), which underflows sooner.
    each = masses / d2 if config.alpha == 2 else masses * d2 ** (-config.alpha / 2)
    return jnp.sum(jnp.where(pair_1xTxT, each, 0), (1, 2)) / jnp.maximum(jnp.sum(pair_1xTxT, (1, 2)), 1)
