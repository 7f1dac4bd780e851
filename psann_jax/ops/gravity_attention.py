"""Attention by distance and mass, from the Newton Gravity Transformer: a plain reference and a tiled implementation."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.config.checks import ConfigError
from psann_jax.ops import kernels, online_softmax, tiles
from psann_jax.ops.dropout import row_words
from psann_jax.ops.gravity_kernel import gravity_kernel, kernel_target, unsupported
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
from psann_jax.ops.tiles import Dropout


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


def choose_gravity(implementation: str, *, dtype: Any, head_size: int, coordinates: int) -> str:
    """Chooses the implementation of gravity attention for the devices of the current mesh.

    Args:
      implementation: "pallas", kernels for GPUs and TPUs; "tiled", for all devices; "auto", the first of them that can
        run; or "plain", which stores arrays (B, H, L, L).
      dtype: of the values.
      head_size: features per head.
      coordinates: per head.

    Returns:
      "pallas", "tiled" or "plain".

    Raises:
      ConfigError: the implementation is unknown or cannot run.
    """
    if implementation not in ("auto", "pallas", "tiled", "plain"):
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from auto, pallas, tiled, plain")
    if implementation in ("tiled", "plain"):
        return kernels.choose("gravity", Candidate(implementation, is_kernel=False))
    reason = unsupported(kernels.platform(), dtype, head_size, coordinates)
    if implementation == "auto":
        return kernels.choose("gravity", Candidate("pallas", reason), Candidate("tiled", is_kernel=False))
    if reason:
        raise ConfigError(f"model.attention: pallas {reason}; use auto or tiled")
    return kernels.choose("gravity", Candidate("pallas"))


def choose_for(inputs: GravityInputs, implementation: str) -> str:
    """Returns `choose_gravity` for these arrays."""
    a, v = inputs.a_BxLxHxC, inputs.v_BxLxHxK
    dtype = a.dtype if a.dtype == jnp.float64 else v.dtype
    return choose_gravity(implementation, dtype=dtype, head_size=v.shape[-1], coordinates=a.shape[-1])


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
    chosen = choose_for(inputs, implementation)
    if chosen == "pallas":
        return gravity_kernel(
            form, inputs, dropout_words(form, inputs), kernel_target(kernels.platform(), inputs.v_BxLxHxK)
        )
    wide = jnp.promote_types(inputs.v_BxLxHxK.dtype, jnp.float32)
    x = inputs._replace(
        a_BxLxHxC=inputs.a_BxLxHxC.astype(wide),
        params=GravityParams(*(param.astype(wide) for param in inputs.params)),
        mass_BxL=None if inputs.mass_BxL is None else inputs.mass_BxL.astype(wide),
        dropout_key=inputs.dropout_key if form.dropout_rate else None,
    )
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


def _strengths(x: GravityInputs) -> Strengths:
    """Returns the parameters, broadcastable to (B, H, T, T)."""
    return Strengths(x.params.gamma_H[:, None, None], x.params.bias_H[:, None, None], x.params.radius)


def _tile(form: GravityForm, x: GravityInputs, split: dict[str, Any], i: Array, j: Array) -> Tile:
    """Returns the scores of tile (i, j), (B, H, T, T)."""
    a, norm, mass = split["a"], split["norm"], split["mass"]
    lag_TxT, visible = tiles.visible(i, j, a.shape[3], split["segment_ids"])
    same = lag_TxT == 0
    d2 = expanded_distances(a[i], a[j], norm[i], norm[j], same)
    mass_product = None if mass is None else (mass[i][:, :, None] * mass[j][:, None])[:, None]
    return score_tile(form, _strengths(x), d2, Pairs(same, visible, split["self_score"][i][..., None], mass_product))


def _split(form: GravityForm, x: GravityInputs) -> dict[str, Any]:
    """Splits the inputs of the scores into tiles."""
    split_a = tiles.split(x.a_BxLxHxC)
    return {
        "a": split_a,
        "norm": jnp.sum(jnp.square(split_a), axis=-1),
        "mass": tiles.split_rows(x.mass_BxL),
        "segment_ids": tiles.split_rows(x.segment_ids_BxL),
        "self_score": tiles.split(self_scores(form, x)[..., None])[..., 0],
    }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(form: GravityForm, x: GravityInputs) -> Array:
    return _tiled_forward(form, x)[0]


def _tiled_forward(form: GravityForm, x: GravityInputs) -> tuple[Array, tuple[Any, ...]]:
    split, v = _split(form, x), tiles.split(x.v_BxLxHxK)
    options = online_softmax.Options(Dropout(x.dropout_key, form.dropout_rate))
    out, lse = online_softmax.forward(lambda i, j: _tile(form, x, split, i, j).s, v, options, x.a_BxLxHxC.dtype)
    out_BxLxHxK = tiles.join(out, x.v_BxLxHxK.shape[1])
    return out_BxLxHxK, (x, split["self_score"], out_BxLxHxK, lse)


def _tiled_backward(form: GravityForm, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Any]:
    x, self_score, out_BxLxHxK, lse = saved
    split = _split(form, x) | {"self_score": self_score}
    v, out, dout = (tiles.split(y) for y in (x.v_BxLxHxK, out_BxLxHxK, dout_BxLxHxK))
    wide, L = lse.dtype, x.a_BxLxHxC.shape[1]
    # The column of ones turns the product with G into row sums of G, too.
    a1 = jnp.concatenate([split["a"], jnp.ones_like(split["a"][..., :1])], axis=-1)
    a1T = online_softmax.transposed(a1)

    def tile(i: Array, j: Array) -> tuple[Array, Tile]:
        t = _tile(form, x, split, i, j)
        return t.s, t

    def add_gradients(sums: Any, i: Array, j: Array, t: Tile, p: Array, slope: Array) -> Any:
        g = differentiate_tile(form, _strengths(x), t, p, slope, lse[i][..., None])
        sums = sums | {name: sums[name] + grad for name, grad in _sum_over_pairs(form, x, t, g).items()}
        G = g.d2
        at_i = {"Ga": dot("bhij,bhjk->bhik", G, a1[j])}
        at_j = {"GaT": dot("bhki,bhij->bhkj", a1T[i], G)}
        if x.mass_BxL is not None:
            e = g.massed * t.base
            at_i["mass_i"] = jnp.sum(e * split["mass"][j][:, None, None], (1, 3))
            at_j["mass_j"] = jnp.sum(e * split["mass"][i][:, None, :, None], (1, 2))
        for index, parts in ((i, at_i), (j, at_j)):
            sums = sums | {name: tiles.set_tile(sums[name], sums[name][index] + g, index) for name, g in parts.items()}
        return sums

    init = {
        "Ga": jnp.zeros(a1.shape, wide),
        "GaT": jnp.zeros(a1T.shape, wide),
        "gamma": jnp.zeros_like(x.params.gamma_H),
        "bias": jnp.zeros_like(x.params.bias_H),
        "radius": jnp.zeros_like(x.params.radius),
    }
    if x.mass_BxL is not None:
        init |= {"mass_i": jnp.zeros_like(split["mass"]), "mass_j": jnp.zeros_like(split["mass"])}
    options = online_softmax.Options(Dropout(x.dropout_key, form.dropout_rate))
    sums, dv = online_softmax.backward(tile, add_gradients, init, v, options, (out, lse), dout)
    Ga = sums["Ga"] + online_softmax.transposed(sums["GaT"])
    da = tiles.join(2 * (split["a"] * Ga[..., -1:] - Ga[..., :-1]), L)
    dv = tiles.join(dv, L).astype(x.v_BxLxHxK.dtype)
    dmass = None if x.mass_BxL is None else tiles.join_rows(sums["mass_i"] + sums["mass_j"], L)
    dparams = GravityParams(sums["gamma"], sums["bias"], sums["radius"])
    return (GravityInputs(da, dv, dparams, dmass),)


def _sum_over_pairs(form: GravityForm, x: GravityInputs, t: Tile, g: TileGradients) -> dict[str, Array]:
    """Returns the gradients of gamma, bias and, if the cutoff depends on it smoothly, radius from one tile."""
    grads = {"gamma": form.sign * jnp.sum(g.gamma, (0, 2, 3)), "bias": jnp.sum(g.base, (0, 2, 3))}
    if g.cutoff is not None:
        radius = x.params.radius
        grads["radius"] = 2 * jnp.sum(g.cutoff * t.d2) / (jnp.square(radius) * radius)
    return grads


_tiled.defvjp(_tiled_forward, _tiled_backward)
