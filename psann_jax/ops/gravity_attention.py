"""Attention by distance and mass, from the Newton Gravity Transformer: a plain reference and a tiled implementation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.config.checks import ConfigError
from psann_jax.ops import kernels, online_softmax, tiles
from psann_jax.ops.dropout import row_words
from psann_jax.ops.gravity_kernel import GravityCase, gravity_kernel, kernel_target, unsupported
from psann_jax.ops.gravity_scores import (
    SELF_SCORE,
    GravityForm,
    GravityInputs,
    GravityParams,
    dot,
    expanded_distances,
    gravity_weights,
    scores,
    self_scores,
)
from psann_jax.ops.gravity_tile import Pairs, Strengths, Tile, TileGradients, differentiate_tile, score_tile
from psann_jax.ops.kernels import Candidate


class GravityCache(NamedTuple):
    """Cached tokens, in all S slots, written or not; finite in every slot.

    Attributes:
      a_BxSxHxC: coordinates per head.
      v_BxSxHxK: values.
      mass_BxS: masses, if the score uses mass.
    """

    a_BxSxHxC: Array
    v_BxSxHxK: Array
    mass_BxS: Array | None = None


def choose_gravity(implementation: str, case: GravityCase, *, even: bool = True) -> str:
    """Chooses the implementation of gravity attention for the devices of the current mesh.

    Args:
      implementation: "pallas", kernels for GPUs and TPUs; "tiled", for all devices; "auto", the first of them that can
        run; or "plain", which stores arrays (B, H, L, L).
      case: what it must compute.
      even: whether the mesh splits the arrays into equal parts.

    Returns:
      "pallas", "tiled", "ring" (the same for parts of a window) or "plain".

    Raises:
      ConfigError: the implementation is unknown or cannot run.
    """
    if implementation not in ("auto", "pallas", "tiled", "plain"):
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from auto, pallas, tiled, plain")
    parts = kernels.window_parts()
    tiled = Candidate("ring" if parts > 1 and even else "tiled", is_kernel=False)
    if implementation in ("tiled", "plain"):
        return kernels.choose("gravity", tiled if implementation == "tiled" else Candidate("plain", is_kernel=False))
    reason = unsupported(kernels.platform(), case)
    if parts > 1:
        reason = f"cannot attend to parts of a window (mesh.context={parts})"
    if implementation == "auto":
        return kernels.choose("gravity", Candidate("pallas", reason, variant=case), tiled)
    if reason:
        raise ConfigError(f"model.attention: pallas {reason}; use auto or tiled")
    # What the config demands is not passed over, even where kernels are off.
    return kernels.choose("gravity", Candidate("pallas", is_kernel=False))


def choose_for(form: GravityForm, inputs: GravityInputs, implementation: str, *, even: bool = True) -> str:
    """Returns `choose_gravity` for this score of these arrays."""
    a, v = inputs.a_BxLxHxC, inputs.v_BxLxHxK
    dtype = a.dtype if a.dtype == jnp.float64 else v.dtype
    form = form if inputs.dropout_key is not None else replace(form, dropout_rate=0.0)
    given = inputs.mass_BxL is not None, inputs.segment_ids_BxL is not None
    case = GravityCase(form, jnp.dtype(dtype).name, v.shape[-1], a.shape[-1], *given)
    return choose_gravity(implementation, case, even=even)


def dropout_words(form: GravityForm, inputs: GravityInputs) -> Array | None:
    """Returns the random words of all rows and heads for dropout by `gravity_kernel`, or None without dropout."""
    B, _, H, _ = inputs.v_BxLxHxK.shape
    return row_words(inputs.dropout_key, (B, H)) if inputs.dropout_key is not None and form.dropout_rate else None


def gravity_attention(form: GravityForm, inputs: GravityInputs, *, implementation: str = "auto") -> Array:
    """Averages v over the visible tokens, weighted by distance and mass; see `gravity_scores` for the formulas.

    A query sees the tokens up to its own position, in its own segment. Distances, scores and softmax are float32 or
    wider for every input type.

    Args:
      form: options of the score.
      inputs: the arrays.
      implementation: see `choose_gravity`. "tiled" and "plain" drop the same weights for the same key, "pallas" others.

    Returns:
      (B, L, H, K) in the type of the values.

    Raises:
      ConfigError: see `choose_gravity`.
    """
    chosen = choose_for(form, inputs, implementation, even=False)
    if chosen == "pallas":
        return gravity_kernel(
            form, inputs, dropout_words(form, inputs), kernel_target(kernels.platform(), inputs.v_BxLxHxK)
        )
    x = in_wide_types(form, inputs)
    return _plain(form, x) if chosen == "plain" else _tiled(form, x)


def cached_gravity_attention(
    form: GravityForm,
    a_BxLxHxC: Array,
    params: GravityParams,
    cache: GravityCache,
    query_index_BxL: Array,
    *,
    mass_BxL: Array | None = None,
) -> Array:
    """Attends to the slots of a cache, for decoding; a query sees the slots up to its own.

    Args:
      form: options of the score.
      a_BxLxHxC: coordinates of the queries.
      params: of the scores.
      cache: the slots.
      query_index_BxL: slot of each query.
      mass_BxL: masses of the queries, if the score uses mass.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    lag_BxLxS = query_index_BxL[:, :, None] - jnp.arange(cache.a_BxSxHxC.shape[1])
    wide = jnp.promote_types(cache.v_BxSxHxK.dtype, jnp.float32)
    a, b = a_BxLxHxC.astype(wide).swapaxes(1, 2), cache.a_BxSxHxC.astype(wide).swapaxes(1, 2)
    d2 = expanded_distances(a, b, jnp.sum(a * a, -1), jnp.sum(b * b, -1), lag_BxLxS[:, None] == 0)
    mass_product = None
    if mass_BxL is not None and cache.mass_BxS is not None:
        mass_product = mass_BxL[:, :, None] * cache.mass_BxS[:, None]
    s = scores(form, d2, params.gamma_H, params.bias_H, jnp.square(params.radius), mass_product)
    if form.attractive:
        s = jnp.where(lag_BxLxS[:, None] == 0, SELF_SCORE, s)
    p = jax.nn.softmax(jnp.where(lag_BxLxS[:, None] >= 0, s, tiles.MASK_VALUE))
    return jnp.einsum("bhls,bshk->blhk", p.astype(cache.v_BxSxHxK.dtype), cache.v_BxSxHxK)


# --- plain reference ------------------------------------------------------------------------------------


def _plain(form: GravityForm, x: GravityInputs) -> Array:
    B, L, H, _ = x.v_BxLxHxK.shape
    a = x.a_BxLxHxC.swapaxes(1, 2)
    d2 = jnp.sum(jnp.square(a[:, :, :, None] - a[:, :, None]), axis=-1)
    p = gravity_weights(form, d2, x.params.gamma_H, x.params.bias_H, x.params.radius, x.mass_BxL, x.segment_ids_BxL)
    if x.dropout_key is not None:
        p *= tiles.window_dropout_factors(x.dropout_key, form.dropout_rate, B, H, L)
    return jnp.einsum("bhls,bshk->blhk", p.astype(x.v_BxLxHxK.dtype), x.v_BxLxHxK)


# --- tiled, with derivatives of the scores in closed form -----------------------------------------------


class Tokens(NamedTuple):
    """What the scores need of tokens, as tiles.

    Attributes:
      a_nxBxHxTxC: coordinates.
      mass_nxBxT: masses, or None.
      segment_ids_nxBxT: documents, or None.
    """

    a_nxBxHxTxC: Array
    mass_nxBxT: Array | None
    segment_ids_nxBxT: Array | None

    def norms(self) -> Array:
        """Returns the squared norms of the coordinates, (n, B, H, T)."""
        return jnp.sum(jnp.square(self.a_nxBxHxTxC), axis=-1)


def tokens_of(x: GravityInputs) -> Tokens:
    """Splits the inputs of the scores into tiles."""
    return Tokens(tiles.split(x.a_BxLxHxC), tiles.split_rows(x.mass_BxL), tiles.split_rows(x.segment_ids_BxL))


def split_self_scores(form: GravityForm, x: GravityInputs) -> Array:
    """Returns the score of every token with itself as tiles, (n, B, H, T)."""
    return tiles.split(self_scores(form, x)[..., None])[..., 0]


def in_wide_types(form: GravityForm, x: GravityInputs) -> GravityInputs:
    """Returns the inputs with all but the values in float32 or wider, and without a key that would drop nothing."""
    wide = jnp.promote_types(x.v_BxLxHxK.dtype, jnp.float32)
    return x._replace(
        a_BxLxHxC=x.a_BxLxHxC.astype(wide),
        params=GravityParams(*(param.astype(wide) for param in x.params)),
        mass_BxL=None if x.mass_BxL is None else x.mass_BxL.astype(wide),
        dropout_key=x.dropout_key if form.dropout_rate else None,
    )


class GravityTiles:
    """Tiles of scores of queries and keys, and their gradients."""

    def __init__(self, form: GravityForm, params: GravityParams, queries: Tokens, self_score: Array):
        """Takes the queries.

        Args:
          form: options of the score.
          params: of the scores.
          queries: tokens as queries.
          self_score: from `split_self_scores`.
        """
        self.form, self.params, self.queries, self.self_score = form, params, queries, self_score
        # Broadcastable to (B, H, T, T).
        self.strengths = Strengths(params.gamma_H[:, None, None], params.bias_H[:, None, None], params.radius)
        self.norms = queries.norms()

    def tile(self, keys: Tokens, block: tiles.Block) -> Callable[[Array, Array], Tile]:
        """Returns the function from (i, j) to the tile of query tile i and key tile j, (B, H, T, T).

        Args:
          keys: tokens as keys.
          block: where they lie.
        """
        a, b, norm_b = self.queries.a_nxBxHxTxC, keys.a_nxBxHxTxC, keys.norms()
        mass_a, mass_b = self.queries.mass_nxBxT, keys.mass_nxBxT

        def tile(i: Array, j: Array) -> Tile:
            lag_TxT, visible = tiles.visible(i, j, a.shape[3], block)
            same = lag_TxT == 0
            d2 = expanded_distances(a[i], b[j], self.norms[i], norm_b[j], same)
            product = None
            if mass_a is not None and mass_b is not None:
                product = (mass_a[i][:, :, None] * mass_b[j][:, None])[:, None]
            pairs = Pairs(same, visible, self.self_score[i][..., None], product)
            return score_tile(self.form, self.strengths, d2, pairs)

        return tile

    def gradients(
        self,
        keys: tuple[Tokens, Array],
        block: tiles.Block,
        options: online_softmax.Options,
        saved: tuple[Array, Array],
        dout: Array,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Differentiates the attention to keys.

        Args:
          keys: tokens as keys, and their values.
          block: where they lie.
          options: as in the forward pass.
          saved: output and logsumexp of the forward pass.
          dout: gradient of the output.

        Returns:
          Sums for the queries: "Ga", see `input_gradients`; gamma, bias and radius; and mass, if masses multiply
          the scores. For the keys: "Ga", mass, and v, the gradient of the values.
        """
        tokens, v = keys
        at, lse, wide = self.tile(tokens, block), saved[1], saved[1].dtype
        # The column of ones turns the product with G into row sums of G, too.
        a1, b1 = (_with_ones(x.a_nxBxHxTxC) for x in (self.queries, tokens))
        a1T = online_softmax.transposed(a1)

        def tile(i: Array, j: Array) -> tuple[Array, Tile]:
            t = at(i, j)
            return t.s, t

        def add_gradients(sums: Any, i: Array, j: Array, t: Tile, p: Array, slope: Array) -> Any:
            g = differentiate_tile(self.form, self.strengths, t, p, slope, lse[i][..., None])
            of_params = self._sum_over_pairs(t, g)
            sums = sums | {name: sums[name] + grad for name, grad in of_params.items()}
            G = g.d2
            at_i = {"Ga": dot("bhij,bhjk->bhik", G, b1[j])}
            at_j = {"GaT": dot("bhki,bhij->bhkj", a1T[i], G)}
            if self.queries.mass_nxBxT is not None and tokens.mass_nxBxT is not None:
                e = g.massed * t.base
                at_i["mass_i"] = jnp.sum(e * tokens.mass_nxBxT[j][:, None, None], (1, 3))
                at_j["mass_j"] = jnp.sum(e * self.queries.mass_nxBxT[i][:, None, :, None], (1, 2))
            for index, parts in ((i, at_i), (j, at_j)):
                sums = sums | {
                    name: tiles.set_tile(sums[name], sums[name][index] + g, index) for name, g in parts.items()
                }
            return sums

        init = {
            "Ga": jnp.zeros(a1.shape, wide),
            "GaT": jnp.zeros(online_softmax.transposed(b1).shape, wide),
            "gamma": jnp.zeros_like(self.params.gamma_H),
            "bias": jnp.zeros_like(self.params.bias_H),
            "radius": jnp.zeros_like(self.params.radius),
        }
        if self.queries.mass_nxBxT is not None and tokens.mass_nxBxT is not None:
            init |= {"mass_i": jnp.zeros_like(self.queries.mass_nxBxT), "mass_j": jnp.zeros_like(tokens.mass_nxBxT)}
        sums, dv = online_softmax.backward(tile, add_gradients, init, v, options, saved, dout)
        of_keys = {"Ga": online_softmax.transposed(sums.pop("GaT")), "v": dv}
        if "mass_j" in sums:
            of_keys["mass"] = sums.pop("mass_j")
            sums["mass"] = sums.pop("mass_i")
        return sums, of_keys

    def _sum_over_pairs(self, t: Tile, g: TileGradients) -> dict[str, Array]:
        """Returns the gradients of gamma, bias and, if the cutoff depends on it smoothly, radius from one tile."""
        grads = {"gamma": self.form.sign * jnp.sum(g.gamma, (0, 2, 3)), "bias": jnp.sum(g.base, (0, 2, 3))}
        if g.cutoff is not None:
            radius = self.params.radius
            grads["radius"] = 2 * jnp.sum(g.cutoff * t.d2) / (jnp.square(radius) * radius)
        return grads


def _with_ones(a: Array) -> Array:
    return jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)


def input_gradients(x: GravityInputs, of_queries: dict[str, Array], of_keys: dict[str, Array]) -> GravityInputs:
    """Returns the gradients of the inputs from those of `GravityTiles.gradients`, summed over all blocks."""
    L, split_a = x.a_BxLxHxC.shape[1], tiles.split(x.a_BxLxHxC)
    Ga = of_queries["Ga"] + of_keys["Ga"]
    da = tiles.join(2 * (split_a * Ga[..., -1:] - Ga[..., :-1]), L)
    dv = tiles.join(of_keys["v"], L).astype(x.v_BxLxHxK.dtype)
    dmass = None if x.mass_BxL is None else tiles.join_rows(of_queries["mass"] + of_keys["mass"], L)
    dparams = GravityParams(*(of_queries[name] for name in ("gamma", "bias", "radius")))
    return GravityInputs(da, dv, dparams, dmass)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(form: GravityForm, x: GravityInputs) -> Array:
    return _tiled_forward(form, x)[0]


def _options(form: GravityForm, x: GravityInputs, n: int) -> online_softmax.Options:
    factors = None if x.dropout_key is None else partial(tiles.dropout_factors, x.dropout_key, form.dropout_rate)
    return online_softmax.Options(tiles.tile_pairs(n), factors)


def _tiled_forward(form: GravityForm, x: GravityInputs) -> tuple[Array, tuple[Any, ...]]:
    tokens, v, self_score = tokens_of(x), tiles.split(x.v_BxLxHxK), split_self_scores(form, x)
    block = tiles.own_block(tokens.segment_ids_nxBxT)
    at = GravityTiles(form, x.params, tokens, self_score).tile(tokens, block)
    out, lse = online_softmax.forward(lambda i, j: at(i, j).s, v, _options(form, x, v.shape[0]), x.a_BxLxHxC.dtype)
    out_BxLxHxK = tiles.join(out, x.v_BxLxHxK.shape[1])
    return out_BxLxHxK, (x, self_score, out_BxLxHxK, lse)


def _tiled_backward(form: GravityForm, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Any]:
    x, self_score, out_BxLxHxK, lse = saved
    tokens = tokens_of(x)
    v, out, dout = (tiles.split(y) for y in (x.v_BxLxHxK, out_BxLxHxK, dout_BxLxHxK))
    block, options = tiles.own_block(tokens.segment_ids_nxBxT), _options(form, x, v.shape[0])
    scores = GravityTiles(form, x.params, tokens, self_score)
    return (input_gradients(x, *scores.gradients((tokens, v), block, options, (out, lse), dout)),)


_tiled.defvjp(_tiled_forward, _tiled_backward)
