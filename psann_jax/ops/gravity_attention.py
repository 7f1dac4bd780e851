"""Attention by distance and mass, of the Newton Gravity Transformer: a plain form, and a tiled one linear in length."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import tiles
from psann_jax.ops.gravity_scores import (
    SELF,
    GravityForm,
    base_scores,
    dot,
    expanded_distances,
    gravity_weights,
    inverse,
    scores,
    times,
)


class _Inputs(NamedTuple):
    """The arrays of `gravity_attention`; all but the values in float32 at least."""

    a_BxLxHxC: Array
    v_BxLxHxK: Array
    gamma_H: Array
    bias_H: Array
    radius: Array
    mass_BxL: Array | None
    segment_ids_BxL: Array | None
    key: Array | None  # of dropout


def gravity_attention(
    form: GravityForm,
    a_BxLxHxC: Array,
    v_BxLxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius: Array,
    *,
    mass_BxL: Array | None = None,
    segment_ids_BxL: Array | None = None,
    dropout_key: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """The mean of v over the visible tokens (those not after the query, in its segment), weighted by distance and mass.

    Distances, scores and softmax are in float32 at least, whatever the inputs are.

    Args:
      form: how scores are made.
      a_BxLxHxC: coordinates of the heads.
      v_BxLxHxK: values.
      gamma_H: positive factors of the heads.
      bias_H: added to scores.
      radius: scalar; without effect if form.cutoff is none.
      mass_BxL: if given, scores are multiplied by the product of both masses, the bias included.
      segment_ids_BxL: document numbers; None: one document a row.
      dropout_key: decides which weights are dropped; None: none.
      implementation: "plain" keeps arrays (B, H, L, L); "tiled" and "auto" do not.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    wide = jnp.promote_types(v_BxLxHxK.dtype, jnp.float32)
    x = _Inputs(
        a_BxLxHxC.astype(wide),
        v_BxLxHxK,
        gamma_H.astype(wide),
        bias_H.astype(wide),
        radius.astype(wide),
        None if mass_BxL is None else mass_BxL.astype(wide),
        segment_ids_BxL,
        dropout_key if form.dropout_rate else None,
    )
    return _plain(form, x) if implementation == "plain" else _tiled(form, x)


def cached_gravity_attention(
    form: GravityForm,
    a_BxLxHxC: Array,
    cached_a_BxSxHxC: Array,
    cached_v_BxSxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius: Array,
    query_index_BxL: Array,
    *,
    mass_BxL: Array | None = None,
    cached_mass_BxS: Array | None = None,
) -> Array:
    """The same over the slots of a cache, for decoding: slot j is visible to a query if j <= its index.

    Args:
      form: how scores are made.
      a_BxLxHxC: coordinates of the queries.
      cached_a_BxSxHxC: of all S slots, written or not, finite.
      cached_v_BxSxHxK: their values.
      gamma_H: as above.
      bias_H: as above.
      radius: as above.
      query_index_BxL: the slot of each query.
      mass_BxL: of the queries, if mass is in the score.
      cached_mass_BxS: of the slots, likewise.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    back_BxLxS = query_index_BxL[:, :, None] - jnp.arange(cached_a_BxSxHxC.shape[1])
    wide = jnp.promote_types(cached_v_BxSxHxK.dtype, jnp.float32)
    a, b = a_BxLxHxC.astype(wide).swapaxes(1, 2), cached_a_BxSxHxC.astype(wide).swapaxes(1, 2)
    d2 = expanded_distances(a, b, jnp.sum(a * a, -1), jnp.sum(b * b, -1), back_BxLxS[:, None] == 0)
    product = None if mass_BxL is None or cached_mass_BxS is None else mass_BxL[:, :, None] * cached_mass_BxS[:, None]
    s = scores(form, d2, gamma_H, bias_H, jnp.square(radius), product)
    if form.attractive:
        s = jnp.where(back_BxLxS[:, None] == 0, SELF, s)
    p = jax.nn.softmax(jnp.where(back_BxLxS[:, None] >= 0, s, tiles.MASKED))
    return jnp.einsum("bhls,bshk->blhk", p.astype(cached_v_BxSxHxK.dtype), cached_v_BxSxHxK)


# --- the plain form -------------------------------------------------------------------------------------


def _plain(form: GravityForm, x: _Inputs) -> Array:
    B, L, H, _ = x.v_BxLxHxK.shape
    a = x.a_BxLxHxC.swapaxes(1, 2)
    d2 = jnp.sum(jnp.square(a[:, :, :, None] - a[:, :, None]), axis=-1)
    p = gravity_weights(form, d2, x.gamma_H, x.bias_H, x.radius, x.mass_BxL, x.segment_ids_BxL)
    if x.key is not None:
        p *= tiles.keep_whole(x.key, form.dropout_rate, B, H, L)
    return jnp.einsum("bhls,bshk->blhk", p.astype(x.v_BxLxHxK.dtype), x.v_BxLxHxK)


# --- the tiled form -------------------------------------------------------------------------------------
# Dao, "FlashAttention-2", 2023, over the tiles of `psann_jax.ops.tiles`, with distances by |a|^2 + |b|^2 - 2ab and
# the derivatives in closed form.


@dataclass(frozen=True)
class _Tile:
    """Scores of one tile and what their derivatives need, each (B, H, T, T) unless said otherwise."""

    d2: Array
    u: Array
    base: Array  # the score without mass and cutoff
    massed: Array  # the score without the cutoff
    s: Array  # the score, masked
    product: Array | None  # of the masses, (B, T, T)
    same: Array  # (T, T), where query and key are one token
    seen: Array  # what is visible and not cut off


def _tile(form: GravityForm, x: _Inputs, split: dict[str, Any], i: Array, j: Array) -> _Tile:
    a, norm, mass, radius2 = split["a"], split["norm"], split["mass"], jnp.square(x.radius)
    back_TxT, seen = tiles.visible(i, j, a.shape[3], split["segment_ids"])
    same = back_TxT == 0
    d2 = expanded_distances(a[i], a[j], norm[i], norm[j], same)
    u = inverse(form, d2)
    product = None if mass is None else mass[i][:, :, None] * mass[j][:, None]
    base = base_scores(form, u, x.gamma_H, x.bias_H)
    massed = s = times(base, product)
    if form.cutoff == "soft":
        s = massed * jnp.maximum(1 - d2 / radius2, 0)
    elif form.cutoff == "hard":
        seen &= d2 <= radius2
    elif form.cutoff == "decay":
        seen &= d2 < radius2
        s = massed + jnp.log(jnp.where(seen, 1 - d2 / radius2, 1))
    # Of a token that sees only itself the score must be the same in both passes, to the last bit.
    s = jnp.where(same, split["self"][i][..., None], s)
    return _Tile(d2, u, base, massed, jnp.where(seen, s, tiles.MASKED), product, same, seen)


def _split(form: GravityForm, x: _Inputs) -> dict[str, Any]:
    """The inputs of tiles."""
    B, L, H, _ = x.a_BxLxHxC.shape
    if form.attractive:
        own = jnp.full((B, L, H), SELF, x.a_BxLxHxC.dtype)
    else:
        own = jnp.broadcast_to(-x.gamma_H / form.eps + x.bias_H, (B, L, H))
        own = own if x.mass_BxL is None else own * jnp.square(x.mass_BxL)[..., None]
    split_a = tiles.split(x.a_BxLxHxC)
    return {
        "a": split_a,
        "norm": jnp.sum(jnp.square(split_a), axis=-1),
        "mass": tiles.split_rows(x.mass_BxL),
        "segment_ids": tiles.split_rows(x.segment_ids_BxL),
        "self": tiles.split(own[..., None])[..., 0],
    }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(form: GravityForm, x: _Inputs) -> Array:
    return _tiled_forward(form, x)[0]


def _tiled_forward(form: GravityForm, x: _Inputs) -> tuple[Array, tuple[Any, ...]]:
    split, v = _split(form, x), tiles.split(x.v_BxLxHxK)
    n, B, H, T, K = v.shape
    wide = x.a_BxLxHxC.dtype

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse = carry
        i, j = pair
        first = j == 0
        s = _tile(form, x, split, i, j).s
        before_BxHxT = jnp.where(first, tiles.MASKED, max_BxHxT)
        max_BxHxT = jnp.maximum(before_BxHxT, s.max(-1))
        p = jnp.exp(s - max_BxHxT[..., None])
        shrink_BxHxT = jnp.where(first, 0, jnp.exp(before_BxHxT - max_BxHxT))
        sum_BxHxT = sum_BxHxT * shrink_BxHxT + p.sum(-1)
        if x.key is not None:
            p *= tiles.keep(x.key, form.dropout_rate, p.shape, i, j)
        pv = jnp.einsum("bhij,bhjk->bhik", p.astype(v.dtype), v[j], preferred_element_type=wide)
        acc_BxHxTxK = acc_BxHxTxK * shrink_BxHxT[..., None] + pv
        # Written at every tile of keys; the last one, on the diagonal, stays.
        out = tiles.put(out, (acc_BxHxTxK / sum_BxHxT[..., None]).astype(out.dtype), i)
        lse = tiles.put(lse, max_BxHxT + jnp.log(sum_BxHxT), i)
        return (max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse), None

    row = jnp.zeros((B, H, T), wide)
    init = (row, row, jnp.zeros((B, H, T, K), wide), jnp.zeros_like(v), jnp.zeros((n, B, H, T), wide))
    (*_, out, lse), _ = lax.scan(step, init, tiles.pairs(n))
    out_BxLxHxK = tiles.join(out, x.v_BxLxHxK.shape[1])
    return out_BxLxHxK, (x, split["self"], out_BxLxHxK, lse)


def _tiled_backward(form: GravityForm, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Any]:
    x, own, out_BxLxHxK, lse = saved
    split = _split(form, x) | {"self": own}
    v, dout = tiles.split(x.v_BxLxHxK), tiles.split(dout_BxLxHxK)
    wide, L = lse.dtype, x.a_BxLxHxC.shape[1]
    delta = (dout.astype(wide) * tiles.split(out_BxLxHxK)).sum(-1)
    # With a column of ones, whose product is the sum of a row; transposed once, for matmuls that contract the last
    # axis of their left side (see `psann_jax.ops.attention`).
    a1 = jnp.concatenate([split["a"], jnp.ones_like(split["a"][..., :1])], axis=-1)
    a1T, doutT = a1.swapaxes(3, 4), dout.swapaxes(3, 4)

    def step(sums: Any, pair: Any) -> tuple[Any, None]:
        i, j = pair
        t = _tile(form, x, split, i, j)
        dp = jnp.einsum("bhik,bhjk->bhij", dout[i], v[j], preferred_element_type=wide)
        p = dropped = jnp.exp(t.s - lse[i][..., None])
        if x.key is not None:
            factor = tiles.keep(x.key, form.dropout_rate, p.shape, i, j)
            dropped, dp = p * factor, dp * factor
        slope = dp - delta[i][..., None]
        # A token that sees only itself has the weight 1 whatever its score is; rounding must not say otherwise,
        # for the derivatives of its score are of the size of 1 / eps.
        ds = jnp.where(t.same & ((p == 1) | form.attractive), 0, p * slope)
        scaled, grads, G = _tile_gradients(form, x, t, ds, slope, lse[i])
        sums = sums | {name: sums[name] + g for name, g in grads.items()}
        at_i = {"Ga": dot("bhij,bhjk->bhik", G, a1[j])}
        at_j = {
            "GaT": dot("bhki,bhij->bhkj", a1T[i], G),
            "vT": jnp.einsum("bhki,bhij->bhkj", doutT[i], dropped.astype(dout.dtype), preferred_element_type=wide),
        }
        if x.mass_BxL is not None:
            e = scaled * t.base
            at_i["mass_i"] = jnp.sum(e * split["mass"][j][:, None, None], (1, 3))
            at_j["mass_j"] = jnp.sum(e * split["mass"][i][:, None, :, None], (1, 2))
        for index, parts in ((i, at_i), (j, at_j)):
            sums = sums | {name: tiles.put(sums[name], sums[name][index] + g, index) for name, g in parts.items()}
        return sums, None

    init = {
        "Ga": jnp.zeros(a1.shape, wide),
        "GaT": jnp.zeros(a1T.shape, wide),
        "vT": jnp.zeros(doutT.shape, wide),
        "gamma": jnp.zeros_like(x.gamma_H),
        "bias": jnp.zeros_like(x.bias_H),
        "radius": jnp.zeros_like(x.radius),
    }
    if x.mass_BxL is not None:
        init |= {"mass_i": jnp.zeros_like(split["mass"]), "mass_j": jnp.zeros_like(split["mass"])}
    sums, _ = lax.scan(step, init, tiles.pairs(v.shape[0]))
    Ga = sums["Ga"] + sums["GaT"].swapaxes(3, 4)
    da = tiles.join(2 * (split["a"] * Ga[..., -1:] - Ga[..., :-1]), L)
    dv = tiles.join(sums["vT"].swapaxes(3, 4), L).astype(x.v_BxLxHxK.dtype)
    dmass = None if x.mass_BxL is None else tiles.join_rows(sums["mass_i"] + sums["mass_j"], L)
    return (_Inputs(da, dv, sums["gamma"], sums["bias"], sums["radius"], dmass, None, None),)


def _tile_gradients(
    form: GravityForm, x: _Inputs, t: _Tile, ds: Array, slope: Array, lse: Array
) -> tuple[Array, dict[str, Array], Array]:
    """Derivatives by the parts of the scores of a tile.

    Args:
      form: how scores are made.
      x: the inputs.
      t: the tile.
      ds: derivative by the scores, (B, H, T, T).
      slope: ds without the weights as a factor.
      lse: log of the sum of exp(score) over each row, (B, H, T).

    Returns:
      The derivatives by `massed`; by gamma, bias and, where it has one, radius, summed over the tile; by distances.
    """
    by_massed, by_d2, radius2 = ds, None, jnp.square(x.radius)
    if form.cutoff == "soft":
        by_massed = ds * jnp.maximum(1 - t.d2 / radius2, 0)
        by_d2 = jnp.where(t.d2 < radius2, ds * t.massed, 0)
    elif form.cutoff == "decay":
        # The weight over 1 - d2 / r^2, which stays finite at the radius.
        by_d2 = jnp.where(t.seen & ~t.same, jnp.exp(t.massed - lse[..., None]) * slope, 0)
    by_base = times(by_massed, t.product)
    by_u = by_base * t.u
    G = -form.sign * x.gamma_H[:, None, None] * by_u * t.u
    grads = {"gamma": form.sign * jnp.sum(by_u, (0, 2, 3)), "bias": jnp.sum(by_base, (0, 2, 3))}
    if by_d2 is not None:
        G -= by_d2 / radius2
        grads["radius"] = 2 * jnp.sum(by_d2 * t.d2) / (radius2 * x.radius)
    return by_massed, grads, jnp.where(t.same, 0, G)


_tiled.defvjp(_tiled_forward, _tiled_backward)
