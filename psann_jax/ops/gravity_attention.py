"""Attention by distance and mass, of the Newton Gravity Transformer: a plain form, and a tiled one linear in length.

For tokens with coordinates a and a distance d2_ij = |a_i - a_j|^2 the score is -gamma / (d2_ij + eps) + bias. It grows
with the distance: the softmax prefers far tokens, and a token does not see itself (its score is -gamma / eps), unless
there is no other. `attractive` turns the sign: near tokens are preferred, and the token itself is masked.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import tiles

# The score of an attractive token with itself: below all others, above the masked ones, so that a token without
# any other has itself.
_SELF = -1e20

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


def gravity_attention(
    form: GravityForm,
    a_BxLxHxC: Array,
    v_BxLxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius: Array,
    *,
    mass_BxL: Array | None = None,
    segments_BxL: Array | None = None,
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
      segments_BxL: document numbers; None: one document a row.
      dropout_key: decides which weights are dropped; None: none.
      implementation: "plain" keeps arrays (B, H, L, L); "tiled" and "auto" do not.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    wide = jnp.promote_types(v_BxLxHxK.dtype, jnp.float32)
    a, gamma_H, bias_H, radius2 = (x.astype(wide) for x in (a_BxLxHxC, gamma_H, bias_H, jnp.square(radius)))
    mass_BxL = None if mass_BxL is None else mass_BxL.astype(wide)
    key = dropout_key if form.dropout_rate else None
    attend = _plain if implementation == "plain" else _tiled
    return attend(form, a, v_BxLxHxK, gamma_H, bias_H, radius2, mass_BxL, segments_BxL, key)


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
    d2 = _expanded(a, b, jnp.sum(a * a, -1), jnp.sum(b * b, -1), back_BxLxS[:, None] == 0)
    product = None if mass_BxL is None or cached_mass_BxS is None else mass_BxL[:, :, None] * cached_mass_BxS[:, None]
    s = _scores(form, d2, gamma_H, bias_H, jnp.square(radius), product)
    if form.attractive:
        s = jnp.where(back_BxLxS[:, None] == 0, _SELF, s)
    p = jax.nn.softmax(jnp.where(back_BxLxS[:, None] >= 0, s, tiles.MASKED))
    return jnp.einsum("bhls,bshk->blhk", p.astype(cached_v_BxSxHxK.dtype), cached_v_BxSxHxK)


def squared_distances(a_BxLxHxC: Array) -> Array:
    """Squared distances (B, H, L, L) of the coordinates of the heads, in float32 at least."""
    a = a_BxLxHxC.astype(jnp.promote_types(a_BxLxHxC.dtype, jnp.float32)).swapaxes(1, 2)
    norm = jnp.sum(a * a, -1)
    return _expanded(a, a, norm, norm, jnp.eye(a.shape[2], dtype=bool))


def gravity_weights(
    form: GravityForm,
    d2_BxHxLxL: Array,
    gamma_H: Array,
    bias_H: Array,
    radius: Array,
    mass_BxL: Array | None,
    segments_BxL: Array | None,
) -> Array:
    """The weights (B, H, L, L) that `gravity_attention` gives, for squared distances."""
    back_LxL, visible = tiles.visible_whole(d2_BxHxLxL.shape[-1], segments_BxL)
    product = None if mass_BxL is None else mass_BxL[:, :, None] * mass_BxL[:, None]
    s = _scores(form, d2_BxHxLxL, gamma_H, bias_H, jnp.square(radius), product)
    if form.attractive:
        s = jnp.where(back_LxL == 0, _SELF, s)
    return jax.nn.softmax(jnp.where(visible, s, tiles.MASKED))


def _inverse(form: GravityForm, d2: Array) -> Array:
    return jnp.square(lax.rsqrt(d2 + form.eps)) if form.rsqrt else 1 / (d2 + form.eps)


def _base(form: GravityForm, u: Array, gamma_H: Array, bias_H: Array) -> Array:
    """The score without mass and cutoff, from u = 1 / (d2 + eps) of shape (B, H, L, S)."""
    return form.sign * gamma_H[:, None, None] * u + bias_H[:, None, None]


def _times(x: Array, product: Array | None) -> Array:
    """x (B, H, L, S) times the products of masses (B, L, S), if any."""
    return x if product is None else x * product[:, None]


def _scores(
    form: GravityForm, d2: Array, gamma_H: Array, bias_H: Array, radius2: Array, product: Array | None
) -> Array:
    """Scores (B, H, L, S) of distances (B, H, L, S) and products of masses (B, L, S)."""
    s = _times(_base(form, _inverse(form, d2), gamma_H, bias_H), product)
    if form.cutoff == "hard":
        return jnp.where(d2 > radius2, tiles.MASKED, s)
    if form.cutoff == "soft":
        return s * jax.nn.relu(1 - d2 / radius2)
    if form.cutoff == "decay":
        inside = d2 < radius2
        return jnp.where(inside, s + jnp.log(jnp.where(inside, 1 - d2 / radius2, 1)), tiles.MASKED)
    return s


def _expanded(a: Array, b: Array, norm_a: Array, norm_b: Array, same: Array) -> Array:
    """Squared distances (B, H, L, S) of a (B, H, L, C) and b (B, H, S, C), exactly 0 where both are the same token.

    Rounding is harmless where far tokens are preferred: it matters only for tiny distances, whose weight is 0.
    """
    product = dot("bhik,bhjk->bhij", a, b)
    return jnp.where(same, 0, jnp.maximum(norm_a[..., None] + norm_b[..., None, :] - 2 * product, 0))


# --- the plain form -------------------------------------------------------------------------------------


def _plain(
    form: GravityForm,
    a_BxLxHxC: Array,
    v_BxLxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius2: Array,
    mass_BxL: Array | None,
    segments_BxL: Array | None,
    key: Array | None,
) -> Array:
    B, L, H, _ = v_BxLxHxK.shape
    a = a_BxLxHxC.swapaxes(1, 2)
    d2 = jnp.sum(jnp.square(a[:, :, :, None] - a[:, :, None]), axis=-1)
    p = gravity_weights(form, d2, gamma_H, bias_H, jnp.sqrt(radius2), mass_BxL, segments_BxL)
    if key is not None:
        p *= tiles.keep_whole(key, form.dropout_rate, B, H, L)
    return jnp.einsum("bhls,bshk->blhk", p.astype(v_BxLxHxK.dtype), v_BxLxHxK)


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


def _tile(
    form: GravityForm, split: dict[str, Any], gamma_H: Array, bias_H: Array, radius2: Array, i: Array, j: Array
) -> _Tile:
    a, norm, mass = split["a"], split["norm"], split["mass"]
    back_TxT, seen = tiles.visible(i, j, a.shape[3], split["segments"])
    same = back_TxT == 0
    d2 = _expanded(a[i], a[j], norm[i], norm[j], same)
    u = _inverse(form, d2)
    product = None if mass is None else mass[i][:, :, None] * mass[j][:, None]
    base = _base(form, u, gamma_H, bias_H)
    massed = s = _times(base, product)
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


def _split(form: GravityForm, a: Array, gamma_H: Array, bias_H: Array, mass: Array | None, segments: Any) -> Any:
    """The inputs of tiles."""
    B, L, H, _ = a.shape
    if form.attractive:
        own = jnp.full((B, L, H), _SELF, a.dtype)
    else:
        own = jnp.broadcast_to(-gamma_H / form.eps + bias_H, (B, L, H))
        own = own if mass is None else own * jnp.square(mass)[..., None]
    split_a = tiles.split(a)
    return {
        "a": split_a,
        "norm": jnp.sum(jnp.square(split_a), axis=-1),
        "mass": tiles.split_rows(mass),
        "segments": tiles.split_rows(segments),
        "self": tiles.split(own[..., None])[..., 0],
    }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(
    form: GravityForm,
    a_BxLxHxC: Array,
    v_BxLxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius2: Array,
    mass_BxL: Array | None,
    segments_BxL: Array | None,
    key: Array | None,
) -> Array:
    inputs = (a_BxLxHxC, v_BxLxHxK, gamma_H, bias_H, radius2, mass_BxL, segments_BxL, key)
    return _tiled_forward(form, *inputs)[0]


def _tiled_forward(
    form: GravityForm,
    a_BxLxHxC: Array,
    v_BxLxHxK: Array,
    gamma_H: Array,
    bias_H: Array,
    radius2: Array,
    mass_BxL: Array | None,
    segments_BxL: Array | None,
    key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    split, v = _split(form, a_BxLxHxC, gamma_H, bias_H, mass_BxL, segments_BxL), tiles.split(v_BxLxHxK)
    n, B, H, T, K = v.shape
    wide = a_BxLxHxC.dtype

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse = carry
        i, j = pair
        first = j == 0
        s = _tile(form, split, gamma_H, bias_H, radius2, i, j).s
        before_BxHxT = jnp.where(first, tiles.MASKED, max_BxHxT)
        max_BxHxT = jnp.maximum(before_BxHxT, s.max(-1))
        p = jnp.exp(s - max_BxHxT[..., None])
        shrink_BxHxT = jnp.where(first, 0, jnp.exp(before_BxHxT - max_BxHxT))
        sum_BxHxT = sum_BxHxT * shrink_BxHxT + p.sum(-1)
        if key is not None:
            p *= tiles.keep(key, form.dropout_rate, p.shape, i, j)
        pv = jnp.einsum("bhij,bhjk->bhik", p.astype(v.dtype), v[j], preferred_element_type=wide)
        acc_BxHxTxK = acc_BxHxTxK * shrink_BxHxT[..., None] + pv
        # Written at every tile of keys; the last one, on the diagonal, stays.
        out = tiles.put(out, (acc_BxHxTxK / sum_BxHxT[..., None]).astype(out.dtype), i)
        lse = tiles.put(lse, max_BxHxT + jnp.log(sum_BxHxT), i)
        return (max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse), None

    row = jnp.zeros((B, H, T), wide)
    init = (row, row, jnp.zeros((B, H, T, K), wide), jnp.zeros_like(v), jnp.zeros((n, B, H, T), wide))
    (*_, out, lse), _ = lax.scan(step, init, tiles.pairs(n))
    out_BxLxHxK = tiles.join(out, v_BxLxHxK.shape[1])
    inputs = (a_BxLxHxC, v_BxLxHxK, gamma_H, bias_H, radius2, mass_BxL, segments_BxL, key)
    return out_BxLxHxK, (inputs, split["self"], out_BxLxHxK, lse)


def _tiled_backward(form: GravityForm, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    inputs, own, out_BxLxHxK, lse = saved
    a_BxLxHxC, v_BxLxHxK, gamma_H, bias_H, radius2, mass_BxL, segments_BxL, key = inputs
    split = _split(form, a_BxLxHxC, gamma_H, bias_H, mass_BxL, segments_BxL) | {"self": own}
    v, dout = tiles.split(v_BxLxHxK), tiles.split(dout_BxLxHxK)
    wide, L = lse.dtype, a_BxLxHxC.shape[1]
    delta = (dout.astype(wide) * tiles.split(out_BxLxHxK)).sum(-1)
    # With a column of ones, whose product is the sum of a row; transposed once, for matmuls that contract the last
    # axis of their left side (see `psann_jax.ops.attention`).
    a1 = jnp.concatenate([split["a"], jnp.ones_like(split["a"][..., :1])], axis=-1)
    a1T, doutT = a1.swapaxes(3, 4), dout.swapaxes(3, 4)

    def step(sums: Any, pair: Any) -> tuple[Any, None]:
        i, j = pair
        t = _tile(form, split, gamma_H, bias_H, radius2, i, j)
        dp = jnp.einsum("bhik,bhjk->bhij", dout[i], v[j], preferred_element_type=wide)
        p = dropped = jnp.exp(t.s - lse[i][..., None])
        if key is not None:
            factor = tiles.keep(key, form.dropout_rate, p.shape, i, j)
            dropped, dp = p * factor, dp * factor
        slope = dp - delta[i][..., None]
        # A token that sees only itself has the weight 1 whatever its score is; rounding must not say otherwise,
        # for the derivatives of its score are of the size of 1 / eps.
        ds = jnp.where(t.same & ((p == 1) | form.attractive), 0, p * slope)
        scaled, grads, G = _tile_gradients(form, t, ds, slope, lse[i], gamma_H, radius2)
        sums = sums | {name: sums[name] + x for name, x in grads.items()}
        at_i, at_j = (
            {"Ga": dot("bhij,bhjk->bhik", G, a1[j])},
            {
                "GaT": dot("bhki,bhij->bhkj", a1T[i], G),
                "vT": jnp.einsum("bhki,bhij->bhkj", doutT[i], dropped.astype(dout.dtype), preferred_element_type=wide),
            },
        )
        if mass_BxL is not None:
            e_BxTxT = jnp.sum(scaled * t.base, axis=1)
            at_i["mass_i"] = dot("bij,bj->bi", e_BxTxT, split["mass"][j])
            at_j["mass_j"] = dot("bij,bi->bj", e_BxTxT, split["mass"][i])
        for index, parts in ((i, at_i), (j, at_j)):
            sums = sums | {name: tiles.put(sums[name], sums[name][index] + x, index) for name, x in parts.items()}
        return sums, None

    init = {
        "Ga": jnp.zeros(a1.shape, wide),
        "GaT": jnp.zeros(a1T.shape, wide),
        "vT": jnp.zeros(doutT.shape, wide),
        "gamma": jnp.zeros_like(gamma_H),
        "bias": jnp.zeros_like(bias_H),
        "radius2": jnp.zeros_like(radius2),
    }
    if mass_BxL is not None:
        init |= {"mass_i": jnp.zeros_like(split["mass"]), "mass_j": jnp.zeros_like(split["mass"])}
    sums, _ = lax.scan(step, init, tiles.pairs(v.shape[0]))
    Ga = sums["Ga"] + sums["GaT"].swapaxes(3, 4)
    da = tiles.join(2 * (split["a"] * Ga[..., -1:] - Ga[..., :-1]), L)
    dv = tiles.join(sums["vT"].swapaxes(3, 4), L).astype(v_BxLxHxK.dtype)
    dmass = None if mass_BxL is None else tiles.join_rows(sums["mass_i"] + sums["mass_j"], L)
    return da, dv, sums["gamma"], sums["bias"], sums["radius2"], dmass, None, None


def _tile_gradients(
    form: GravityForm, t: _Tile, ds: Array, slope: Array, lse: Array, gamma_H: Array, radius2: Array
) -> tuple[Array, dict[str, Array], Array]:
    """Derivatives by the parts of the scores of a tile.

    Args:
      form: how scores are made.
      t: the tile.
      ds: derivative by the scores, (B, H, T, T).
      slope: ds without the weights as a factor.
      lse: log of the sum of exp(score) over each row, (B, H, T).
      gamma_H: as in `gravity_attention`.
      radius2: squared radius.

    Returns:
      The derivatives by `massed`; by gamma, bias and, where it has one, radius2, summed over the tile; by distances.
    """
    by_massed, by_d2, grads = ds, None, {}
    if form.cutoff == "soft":
        by_massed = ds * jnp.maximum(1 - t.d2 / radius2, 0)
        by_d2 = jnp.where(t.d2 < radius2, ds * t.massed, 0)
    elif form.cutoff == "decay":
        # The weight over 1 - d2 / r^2, which stays finite at the radius.
        by_d2 = jnp.where(t.seen & ~t.same, jnp.exp(t.massed - lse[..., None]) * slope, 0)
    by_base = _times(by_massed, t.product)
    by_u = by_base * t.u
    G = -form.sign * gamma_H[:, None, None] * by_u * t.u
    grads = {"gamma": form.sign * jnp.sum(by_u, (0, 2, 3)), "bias": jnp.sum(by_base, (0, 2, 3))}
    if by_d2 is not None:
        G -= by_d2 / radius2
        grads["radius2"] = jnp.sum(by_d2 * t.d2) / jnp.square(radius2)
    return by_massed, grads, jnp.where(t.same, 0, G)


_tiled.defvjp(_tiled_forward, _tiled_backward)
