"""Gravity attention as Pallas kernels for GPUs and TPUs, flash style, with memory linear in the window.

One kernel computes the output and the logsumexp of each query. Two kernels differentiate it, one with a program per
query tile and one with a program per key tile, so no two programs write to the same place. Squared distances are sums
of squared differences in float32; scores, weights and sums are float32, too. Values are multiplied in their own type.
A score s that a compiler rounds differently in two kernels gives weights that differ by a factor of up to
1 + |s| 2^-23. The score of a token with itself, of the order of 1 / eps, is therefore computed once.

Source: Dao, "FlashAttention-2", 2023, for the tiles. `gravity_tile` has the scores and their derivatives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.dropout import row_words
from psann_jax.ops.gpu_kinds import no_triton
from psann_jax.ops.gravity_kernel_bodies import (
    Setup,
    backward_of_keys,
    backward_of_queries,
    dropout_factors,
    forward,
    number_of_sums,
)
from psann_jax.ops.gravity_scores import GravityForm, GravityInputs, GravityParams, gravity_weights, self_scores
from psann_jax.ops.tile_loop import Operand, Result, Target, TileLoop, Visits, causal_visits


class GravityCase(NamedTuple):
    """What decides whether the kernel can compute an attention, and which code of it runs.

    Attributes:
      form: options of the score.
      dtype: name of the type of the values, or float64 if the coordinates have that.
      head_size: features per head.
      coordinates: per head.
      has_mass: whether masses multiply the scores.
      has_segment_ids: whether packed documents are masked.
    """

    form: GravityForm
    dtype: str
    head_size: int
    coordinates: int
    has_mass: bool = False
    has_segment_ids: bool = False


_MAX_HEAD_SIZE, _MAX_COORDINATES = 128, 64


def unsupported(platform: str, case: GravityCase) -> str:
    """Returns why the kernel cannot run, or "" if it can.

    Args:
      platform: of the devices: "cpu", "gpu" or "tpu".
      case: what it must compute.
    """
    if platform not in ("gpu", "tpu"):
        return f"runs on GPUs and TPUs, not on {platform}"
    if platform == "gpu" and (reason := no_triton(kernels.device_kind())):
        return reason
    types = {"gpu": ("float32", "bfloat16", "float16"), "tpu": ("float32", "bfloat16")}[platform]
    if case.dtype not in types:
        return f"computes in {', '.join(types)} on this device, not in {case.dtype}"
    if case.head_size > _MAX_HEAD_SIZE:
        return f"supports head sizes up to {_MAX_HEAD_SIZE}, not {case.head_size}"
    if case.coordinates > _MAX_COORDINATES:
        return f"supports up to {_MAX_COORDINATES} coordinates per head, not {case.coordinates}"
    return ""


def kernel_target(platform: str, v_BxLxHxK: Array, *, interpret: bool = False) -> Target:
    """Returns what to compile the kernel for; for values of this type and length.

    Args:
      platform: "gpu" or "tpu".
      v_BxLxHxK: the values.
      interpret: see `Target`.
    """
    if platform == "gpu":
        # With 64, a multiprocessor of an H100 has registers for one program only, which mostly waits: a layer of
        # w3_25m took 1.5 ms per micro-batch on an H200. With 32, it has registers for 5 programs of the forward and 2
        # or 3 of the backward pass (compiled, not run).
        return Target(platform, 32, interpret)
    return Target(platform, 128 if v_BxLxHxK.shape[1] <= 128 else 256, interpret)


def gravity_kernel(form: GravityForm, x: GravityInputs, words_BxHx2: Array | None, target: Target) -> Array:
    """Computes gravity attention, see `psann_jax.ops.gravity_attention`, by a kernel.

    Args:
      form: options of the score.
      x: the arrays; its dropout_key is not used.
      words_BxHx2: `psann_jax.ops.dropout.row_words` of all rows and heads; None disables dropout.
      target: see `kernel_target`.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    x = _widened(x._replace(dropout_key=None))
    return _attend(form, target, x, words_BxHx2 if form.dropout_rate else None)


def weighted_values(form: GravityForm, x: GravityInputs, words_BxHx2: Array | None) -> Array:
    """The plain reference of `gravity_kernel`: the same function of the same arguments, with arrays (B, H, L, L)."""
    a, L = x.a_BxLxHxC.astype(jnp.float32).swapaxes(1, 2), x.a_BxLxHxC.shape[1]
    d2 = jnp.sum(jnp.square(a[:, :, :, None] - a[:, :, None]), axis=-1)
    p = gravity_weights(form, d2, *x.params, x.mass_BxL, x.segment_ids_BxL)
    if words_BxHx2 is not None:
        index = jnp.arange(L, dtype=jnp.int32)
        first, second = (words_BxHx2[:, :, None, None, n] for n in range(2))
        p *= dropout_factors(form.dropout_rate, index[:, None], index, first, second)
    return jnp.einsum("bhls,bshk->blhk", p, x.v_BxLxHxK.astype(p.dtype), precision="highest").astype(x.v_BxLxHxK.dtype)


class _Packed(NamedTuple):
    """The inputs as operands of the kernels, padded."""

    setup: Setup
    shape: tuple[int, int, int]  # B, H, L
    tokens: dict[str, Operand]
    v: Operand
    scalars: dict[str, Operand]
    visits: tuple[Visits, Visits]


def _pack(form: GravityForm, target: Target, x: GravityInputs, words_BxHx2: Array | None) -> _Packed:
    B, L, H, C = x.a_BxLxHxC.shape
    padded = target.padded(L)
    rows = [self_scores(form, x)]
    if x.mass_BxL is not None:
        rows.append(jnp.broadcast_to(x.mass_BxL[..., None], (B, L, H)))
    tokens = {
        "a": _rows(_pad_features(target, x.a_BxLxHxC), padded),
        "extra": _rows(jnp.stack(rows, -1), padded),
    }
    segment_ids = None
    if x.segment_ids_BxL is not None:
        # With an id of its own, the padding would make the last tile visit all others, see `causal_visits`.
        segment_ids = jnp.pad(x.segment_ids_BxL.astype(jnp.int32), ((0, 0), (0, padded - L)), mode="edge")
        tokens["segments"] = Operand("rows", segment_ids[:, None, None])
    gamma, bias, radius = x.params
    params_Hx3 = jnp.stack([gamma, bias, jnp.broadcast_to(radius, gamma.shape)], -1)
    scalars = {"params": Operand("scalars", params_Hx3[None, :, None])}
    if words_BxHx2 is not None:
        scalars["words"] = Operand("scalars", words_BxHx2[:, :, None])
    setup = Setup(form, target, C, x.mass_BxL is not None, words_BxHx2 is not None)
    v = _values(target, x.v_BxLxHxK, padded)
    return _Packed(setup, (B, H, padded), tokens, v, scalars, causal_visits(target.T, padded, segment_ids))


def _widened(x: GravityInputs) -> GravityInputs:
    """Returns the inputs with everything but the values in float32."""
    wide = jax.tree.map(lambda y: y.astype(jnp.float32), (x.a_BxLxHxC, x.params, x.mass_BxL))
    return x._replace(a_BxLxHxC=wide[0], params=wide[1], mass_BxL=wide[2])


def _pad_features(target: Target, x_BxLxHxF: Array) -> Array:
    """Pads the last axis with zeros to a size that the platform can multiply."""
    size = x_BxLxHxF.shape[-1]
    padded = max(16, 1 << (size - 1).bit_length()) if target.platform == "gpu" else size
    return jnp.pad(x_BxLxHxF, ((0, 0), (0, 0), (0, 0), (0, padded - size)))


def _rows(x_BxLxHxF: Array, padded: int) -> Operand:
    rows_BxHxFxL = x_BxLxHxF.transpose(0, 2, 3, 1)
    return Operand("rows", jnp.pad(rows_BxHxFxL, ((0, 0), (0, 0), (0, 0), (0, padded - x_BxLxHxF.shape[1]))))


def _values(target: Target, x_BxLxHxK: Array, padded: int) -> Operand:
    x_BxLxHxK = jnp.pad(_pad_features(target, x_BxLxHxK), ((0, 0), (0, padded - x_BxLxHxK.shape[1]), (0, 0), (0, 0)))
    return Operand("values", x_BxLxHxK if target.platform == "gpu" else x_BxLxHxK.swapaxes(1, 2))


def _unpad(target: Target, values: Array, shape: tuple[int, ...]) -> Array:
    """Returns the window (B, L, H, K) of an array of "values"."""
    return (values if target.platform == "gpu" else values.swapaxes(1, 2))[:, : shape[1], :, : shape[3]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(form: GravityForm, target: Target, x: GravityInputs, words_BxHx2: Array | None) -> Array:
    return _forward(form, target, x, words_BxHx2)[0]


def _forward(
    form: GravityForm, target: Target, x: GravityInputs, words_BxHx2: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    packed = _pack(form, target, x, words_BxHx2)
    K = packed.v.array.shape[3]
    out, lse_BxHx1xL = TileLoop(
        name="gravity_forward",
        body=forward(packed.setup, K),
        shape=packed.shape,
        visits=packed.visits[0],
        late_first=True,
        fixed=packed.tokens,
        looped=packed.tokens | {"v": packed.v},
        scalars=packed.scalars,
        results=(Result("values", K, x.v_BxLxHxK.dtype), Result("rows", 1, jnp.float32)),
    ).run(target)
    out_BxLxHxK = _unpad(target, out, x.v_BxLxHxK.shape)
    # The scores of tokens with themselves are saved: both passes must read the same ones, see `score_tile`.
    return out_BxLxHxK, (x, words_BxHx2, packed.tokens["extra"].array, out_BxLxHxK, lse_BxHx1xL)


def _backward(form: GravityForm, target: Target, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Any, None]:
    x, words_BxHx2, extra, out_BxLxHxK, lse_BxHx1xL = saved
    packed = _pack(form, target, x, words_BxHx2)
    padded, L = packed.shape[2], x.a_BxLxHxC.shape[1]
    tokens = packed.tokens | {"extra": Operand("rows", extra)}
    delta_BxLxH = jnp.sum(dout_BxLxHxK.astype(jnp.float32) * out_BxLxHxK, -1)
    queries = tokens | {
        "lse": Operand("rows", lse_BxHx1xL),
        "delta": _rows(delta_BxLxH[..., None], padded),
        "dout": _values(target, dout_BxLxHxK, padded),
    }
    keys = tokens | {"v": packed.v}
    Ga_i, sums_i = _sum_over_keys(packed, queries, keys)
    dv, Ga_j, sums_j = _sum_over_queries(packed, queries, keys)

    dd2_BxLxH = (sums_i[:, :, 0, :L] + sums_j[:, :, 0, :L]).swapaxes(1, 2)
    Ga_BxLxHxC = (Ga_i + Ga_j)[:, :, : packed.setup.coordinates, :L].transpose(0, 3, 1, 2)
    da_BxLxHxC = 2 * (x.a_BxLxHxC * dd2_BxLxH[..., None] - Ga_BxLxHxC)
    dparams, dmass_BxL = _from_sums(form, x, sums_i[..., :L])
    if dmass_BxL is not None:
        dmass_BxL += jnp.sum(sums_j[:, :, 1, :L], 1)
    dv_BxLxHxK = _unpad(target, dv, x.v_BxLxHxK.shape)
    return GravityInputs(da_BxLxHxC, dv_BxLxHxK, dparams, dmass_BxL), None


def _sum_over_keys(packed: _Packed, queries: dict[str, Operand], keys: dict[str, Operand]) -> list[Array]:
    """Returns the results of `backward_of_queries`."""
    setup, C = packed.setup, packed.tokens["a"].array.shape[2]
    return TileLoop(
        name="gravity_backward_of_queries",
        body=backward_of_queries(setup, C),
        shape=packed.shape,
        visits=packed.visits[0],
        late_first=True,
        fixed=queries,
        looped=keys,
        scalars=packed.scalars,
        results=(Result("rows", C, jnp.float32), Result("rows", number_of_sums(setup.form), jnp.float32)),
    ).run(setup.target)


def _sum_over_queries(packed: _Packed, queries: dict[str, Operand], keys: dict[str, Operand]) -> list[Array]:
    """Returns the results of `backward_of_keys`."""
    setup, C, K = packed.setup, packed.tokens["a"].array.shape[2], packed.v.array.shape[3]
    return TileLoop(
        name="gravity_backward_of_keys",
        body=backward_of_keys(setup, C, K),
        shape=packed.shape,
        visits=packed.visits[1],
        fixed=keys,
        looped=queries,
        scalars=packed.scalars,
        results=(
            Result("values", K, packed.v.array.dtype),
            Result("rows", C, jnp.float32),
            Result("rows", 1 + setup.has_mass, jnp.float32),
        ),
    ).run(setup.target)


def _from_sums(form: GravityForm, x: GravityInputs, sums_BxHxFxL: Array) -> tuple[GravityParams, Array | None]:
    """Returns the gradients of the parameters, and those of the queries' masses, from `backward_of_queries`' sums."""
    gamma_BxHxL, bias_BxHxL = form.sign * sums_BxHxFxL[:, :, 1], sums_BxHxFxL[:, :, 2]
    gamma, bias, radius = x.params
    dmass_BxL, dradius = None, jnp.zeros_like(radius)
    if x.mass_BxL is not None:
        dmass_BxL = jnp.sum(gamma[:, None] * gamma_BxHxL + bias[:, None] * bias_BxHxL, 1)
        gamma_BxHxL, bias_BxHxL = (y * x.mass_BxL[:, None] for y in (gamma_BxHxL, bias_BxHxL))
    if sums_BxHxFxL.shape[2] == 4:
        dradius = 2 * jnp.sum(sums_BxHxFxL[:, :, 3]) / (jnp.square(radius) * radius)
    return GravityParams(jnp.sum(gamma_BxHxL, (0, 2)), jnp.sum(bias_BxHxL, (0, 2)), dradius), dmass_BxL


_attend.defvjp(_forward, _backward)


# --- the problem on which a run checks the kernel -------------------------------------------------------


@kernels.example("gravity.pallas")
def _example(*variant: Any) -> kernels.Example:
    case, B, L, H = GravityCase(*variant), 2, 300, 2
    C, rate = case.coordinates, case.form.dropout_rate
    segment_ids_BxL = jnp.stack(
        [jnp.searchsorted(jnp.array(begins), jnp.arange(L)) for begins in ([0, 90, 280], [200])]
    )

    def inputs(key: Array) -> tuple[Array, ...]:
        of_a, of_v, of_mass = jax.random.split(key, 3)
        a_BxLxHxC = jax.random.normal(of_a, (B, L, H, C))
        v_BxLxHxK = jax.random.normal(of_v, (B, L, H, case.head_size)).astype(case.dtype)
        # About half of the tokens are nearer than the radius.
        params = jnp.array([0.7, 1.5]), jnp.array([0.1, -0.2]), jnp.sqrt(jnp.float32(2 * C))
        return a_BxLxHxC, v_BxLxHxK, *params, jax.random.uniform(of_mass, (B, L), minval=0.3, maxval=1.5)

    def run(
        attend: Callable[..., Array], a: Array, v: Array, gamma: Array, bias: Array, radius: Array, mass: Array
    ) -> Array:
        # Softmax removes a bias of all scores, so its gradient would be a comparison of rounding errors.
        acts = case.has_mass or case.form.cutoff == "soft"
        params = GravityParams(gamma, bias if acts else lax.stop_gradient(bias), radius)
        ids = segment_ids_BxL if case.has_segment_ids else None
        x = GravityInputs(a, v, params, mass if case.has_mass else None, ids)
        return attend(case.form, x, row_words(jax.random.key(0), (B, H)) if rate else None)

    def kernel(form: GravityForm, x: GravityInputs, words: Array | None) -> Array:
        return gravity_kernel(form, x, words, kernel_target(kernels.platform(), x.v_BxLxHxK))

    # The gradient of the bias is a sum that nearly cancels, of terms that know the output in the type of the values:
    # in bf16, interpreted, it differs by up to 0.012.
    return kernels.Example(partial(run, kernel), partial(run, weighted_values), inputs, tolerance=0.03)
