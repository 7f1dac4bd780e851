"""Causal attention: a dense form, a tiled one whose memory is linear in length, and cuDNN's."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.config.checks import ConfigError
from psann_jax.ops import tiles


def alibi_slopes(n_heads: int) -> Array:
    """Slopes of ALiBi for any number of heads, as BLOOM extends them (Press et al., "Train Short, Test Long", 2022).

    For a power of two, n: 2^(-8/n), 2^(-16/n), ... 2^-8. For others: those of the power of two below, followed
    by every second one of the power of two above.

    Returns:
        (n_heads,) float32.
    """
    below = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(n_heads - below)]
    return jnp.array(slopes, jnp.float32)


def choose_attention(
    implementation: str,
    *,
    platform: str,
    dtype: Any,
    head_dim: int,
    has_segment_ids: bool,
    has_alibi: bool,
    dropout: float,
) -> str:
    """The implementation that `causal_attention` runs for the given options.

    Args:
        implementation: "auto" (cudnn where it can honour the options, else xla), "xla", "cudnn" or "plain".
        platform: of the devices that will run it: "cpu", "gpu", "tpu".
        dtype: of queries, keys and values.
        head_dim: features of a head.
        has_segments: whether documents are masked.
        has_alibi: whether ALiBi is added.
        dropout: rate on the attention weights.

    Returns:
        "xla", "cudnn" or "plain".

    Raises:
        ConfigError: the asked implementation is unknown or cannot honour the options.
    """
    if implementation not in ("auto", "xla", "cudnn", "plain"):
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from auto, xla, cudnn, plain")
    if implementation in ("xla", "plain"):
        return implementation
    dtype = jnp.dtype(dtype)
    obstacles = {
        f"runs on NVIDIA GPUs, not on {platform}": platform not in ("gpu", "cuda"),
        f"computes in bf16 or fp16, not in {dtype}": dtype not in (jnp.bfloat16, jnp.float16),
        f"needs a head size that is a multiple of 8 up to 128, not {head_dim}": head_dim % 8 != 0 or head_dim > 128,
        "cannot keep packed documents apart": has_segment_ids,
        "cannot add ALiBi": has_alibi,
        "cannot drop attention weights": dropout > 0,
    }
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if implementation == "cudnn" and reasons:
        raise ConfigError(f"model.attention: cudnn {reasons[0]}; use auto or xla")
    return "xla" if reasons else "cudnn"


def causal_attention(
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    *,
    segment_ids_BxL: Array | None = None,
    alibi_slopes_H: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """softmax(q k^T / sqrt(K) + bias) v over the visible keys: those not after the query, in its segment.

    Scores and softmax are in float32 (float64 for float64 inputs), the matmuls read the type of the inputs.

    Args:
        q_BxLxHxK: queries.
        k_BxLxHxK: keys.
        v_BxLxHxK: values.
        segment_ids_BxL: document numbers; None: one document a row. Padding is a document like any other.
        alibi_slopes_H: adds -slope * (query index - key index); a constant, it gets no gradient.
        dropout_rate: share of the attention weights that is dropped, in [0, 1).
        dropout_key: decides which; needed if `dropout_rate` > 0. The same key drops the same weights in "xla"
            and "plain".
        implementation: see `choose_attention`. "auto" goes by the default backend; a caller with a mesh of
            other devices resolves it first.

    Returns:
        (B, L, H, K) in the type of the queries.

    Raises:
        ConfigError: the implementation cannot honour the options.
        ValueError: dropout without a key.
    """
    live = choose_attention(
        implementation,
        platform=jax.default_backend(),
        dtype=q_BxLxHxK.dtype,
        head_dim=q_BxLxHxK.shape[-1],
        has_segment_ids=segment_ids_BxL is not None,
        has_alibi=alibi_slopes_H is not None,
        dropout=dropout_rate,
    )
    if live == "cudnn":
        return jax.nn.dot_product_attention(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, is_causal=True, implementation="cudnn")
    if dropout_rate == 0:
        dropout_key = None
    elif dropout_key is None:
        raise ValueError("dropout_rate > 0 needs a dropout_key")
    attend = _plain_attention if live == "plain" else _tiled_attention
    return attend(dropout_rate, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, alibi_slopes_H, dropout_key)


def cached_attention(
    q_BxLxHxK: Array,
    k_BxSxHxK: Array,
    v_BxSxHxK: Array,
    query_index_BxL: Array,
    *,
    alibi_slopes_H: Array | None = None,
) -> Array:
    """Attention over the slots of a cache, for decoding: slot j is visible to a query if j <= its index.

    Args:
        q_BxLxHxK: queries.
        k_BxSxHxK: keys of all S slots, written or not.
        v_BxSxHxK: their values; finite in every slot.
        query_index_BxL: the slot of each query.
        alibi_slopes_H: adds -slope * (query index - slot).

    Returns:
        (B, L, H, K) in the type of the queries.
    """
    back_BxLxS = query_index_BxL[:, :, None] - jnp.arange(k_BxSxHxK.shape[1])[None, None]
    scores_BxHxLxS = _scores(q_BxLxHxK, k_BxSxHxK)
    if alibi_slopes_H is not None:
        scores_BxHxLxS -= alibi_slopes_H[None, :, None, None] * back_BxLxS[:, None]
    p_BxHxLxS = jax.nn.softmax(jnp.where(back_BxLxS[:, None] >= 0, scores_BxHxLxS, tiles.MASKED))
    return _weigh(p_BxHxLxS, v_BxSxHxK).astype(q_BxLxHxK.dtype)


def _scores(q_BxLxHxK: Array, k_BxSxHxK: Array) -> Array:
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scale = 1 / math.sqrt(q_BxLxHxK.shape[-1])
    return scale * jnp.einsum("blhk,bshk->bhls", q_BxLxHxK, k_BxSxHxK, preferred_element_type=wide)


def _weigh(p_BxHxLxS: Array, v_BxSxHxK: Array) -> Array:
    p_BxHxLxS = p_BxHxLxS.astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhls,bshk->blhk", p_BxHxLxS, v_BxSxHxK)


# --- the dense form -------------------------------------------------------------------------------------


def _plain_attention(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    B, L, H, _ = q_BxLxHxK.shape
    back_LxL, visible_BxHxLxL = tiles.visible_whole(L, segment_ids_BxL)
    scores_BxHxLxL = _scores(q_BxLxHxK, k_BxLxHxK)
    if slopes_H is not None:
        scores_BxHxLxL -= slopes_H[None, :, None, None] * back_LxL[None, None]
    p_BxHxLxL = jax.nn.softmax(jnp.where(visible_BxHxLxL, scores_BxHxLxL, tiles.MASKED))
    if dropout_key is not None:
        p_BxHxLxL *= tiles.keep_whole(dropout_key, dropout_rate, B, H, L)
    return _weigh(p_BxHxLxL, v_BxLxHxK)


# --- the tiled form -------------------------------------------------------------------------------------
# Dao, "FlashAttention-2", 2023, over the tiles of `psann_jax.ops.tiles`.


def _tile_scores(
    q_BxHxTxK: Array, k_BxHxTxK: Array, i: Array, j: Array, segments_nxBxT: Array | None, slopes_H: Array | None
) -> Array:
    """Masked scores of tile (i, j), (B, H, T, T)."""
    T, K = q_BxHxTxK.shape[2:]
    wide = jnp.promote_types(q_BxHxTxK.dtype, jnp.float32)
    s = jnp.einsum("bhik,bhjk->bhij", q_BxHxTxK, k_BxHxTxK, preferred_element_type=wide) / math.sqrt(K)
    back_TxT, visible_BxHxTxT = tiles.visible(i, j, T, segments_nxBxT)
    if slopes_H is not None:
        s -= slopes_H[None, :, None, None] * back_TxT[None, None]
    return jnp.where(visible_BxHxTxT, s, tiles.MASKED)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_attention(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    return _tiled_forward(dropout_rate, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, slopes_H, dropout_key)[0]


def _tiled_forward(
    dropout_rate: float,
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    L = q_BxLxHxK.shape[1]
    q, k, v = tiles.split(q_BxLxHxK), tiles.split(k_BxLxHxK), tiles.split(v_BxLxHxK)
    segments_nxBxT = tiles.split_rows(segment_ids_BxL)
    n, B, H, T, K = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse = carry
        i, j = pair
        first = j == 0
        s = _tile_scores(q[i], k[j], i, j, segments_nxBxT, slopes_H)
        before_BxHxT = jnp.where(first, tiles.MASKED, max_BxHxT)
        max_BxHxT = jnp.maximum(before_BxHxT, s.max(-1))
        p = jnp.exp(s - max_BxHxT[..., None])
        shrink_BxHxT = jnp.where(first, 0, jnp.exp(before_BxHxT - max_BxHxT))
        sum_BxHxT = sum_BxHxT * shrink_BxHxT + p.sum(-1)
        if dropout_key is not None:
            p *= tiles.keep(dropout_key, dropout_rate, p.shape, i, j)
        pv = jnp.einsum("bhij,bhjk->bhik", p.astype(v.dtype), v[j], preferred_element_type=wide)
        acc_BxHxTxK = acc_BxHxTxK * shrink_BxHxT[..., None] + pv
        # Written at every tile of keys; the last one, on the diagonal, stays.
        out = tiles.put(out, (acc_BxHxTxK / sum_BxHxT[..., None]).astype(out.dtype), i)
        lse = tiles.put(lse, max_BxHxT + jnp.log(sum_BxHxT), i)
        return (max_BxHxT, sum_BxHxT, acc_BxHxTxK, out, lse), None

    row = jnp.zeros((B, H, T), wide)
    init = (row, row, jnp.zeros((B, H, T, K), wide), jnp.zeros_like(q), jnp.zeros((n, B, H, T), wide))
    (*_, out, lse), _ = lax.scan(step, init, tiles.pairs(n))
    out_BxLxHxK = tiles.join(out, L)
    return out_BxLxHxK, (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse)


def _tiled_backward(dropout_rate: float, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    *inputs, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse = saved
    q, k, v, dout = (tiles.split(x) for x in (*inputs, dout_BxLxHxK))
    # Transposed once, so that every matmul below contracts the last axis of its left side: XLA's CPU matmul
    # is three times as fast then. Therefore dk and dv are summed as (n, B, H, K, T).
    qT, doutT = q.swapaxes(3, 4), dout.swapaxes(3, 4)
    segments_nxBxT = tiles.split_rows(segment_ids_BxL)
    wide = lse.dtype
    delta = (dout.astype(wide) * tiles.split(out_BxLxHxK)).sum(-1)
    dot = partial(jnp.einsum, preferred_element_type=wide)

    def step(carry: Any, pair: Any) -> tuple[Any, None]:
        dq, dkT, dvT = carry
        i, j = pair
        p = jnp.exp(_tile_scores(q[i], k[j], i, j, segments_nxBxT, slopes_H) - lse[i][..., None])
        dp = dot("bhik,bhjk->bhij", dout[i], v[j])
        dropped = p
        if dropout_key is not None:
            keep = tiles.keep(dropout_key, dropout_rate, p.shape, i, j)
            dropped, dp = p * keep, dp * keep
        ds = (p * (dp - delta[i][..., None])).astype(q.dtype)
        dvT = tiles.put(dvT, dvT[j] + dot("bhki,bhij->bhkj", doutT[i], dropped.astype(q.dtype)), j)
        dq = tiles.put(dq, dq[i] + dot("bhij,bhjk->bhik", ds, k[j]), i)
        dkT = tiles.put(dkT, dkT[j] + dot("bhki,bhij->bhkj", qT[i], ds), j)
        return (dq, dkT, dvT), None

    init = (jnp.zeros(q.shape, wide), jnp.zeros(qT.shape, wide), jnp.zeros(qT.shape, wide))
    (dq, dkT, dvT), _ = lax.scan(step, init, tiles.pairs(q.shape[0]))
    scale = 1 / math.sqrt(q.shape[-1])
    grads = (scale * dq, scale * dkT.swapaxes(3, 4), dvT.swapaxes(3, 4))
    dq, dk, dv = (tiles.join(g, x.shape[1]).astype(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv, None, None, None


_tiled_attention.defvjp(_tiled_forward, _tiled_backward)
