"""Causal attention: a dense reference, a tiled implementation with memory linear in length, and cuDNN's."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.config.checks import ConfigError
from psann_jax.ops import online_softmax, tiles
from psann_jax.ops.tiles import NO_DROPOUT, Dropout


def alibi_slopes(n_heads: int) -> Array:
    """Returns the slopes of ALiBi, (n_heads,) float32.

    For a power of two n: 2^(-8/n), 2^(-16/n), ..., 2^-8. For other numbers: the slopes of the power of two below,
    followed by every second slope of the power of two above, as in BLOOM.

    Source: Press et al., "Train Short, Test Long", 2022.
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
    """Chooses the implementation that `causal_attention` runs for the given options.

    Args:
      implementation: "auto" (cudnn where it supports the options, else xla), "xla", "cudnn" or "plain".
      platform: platform of the devices that run it: "cpu", "gpu" or "tpu".
      dtype: type of queries, keys and values.
      head_dim: features per head.
      has_segment_ids: whether packed documents are masked.
      has_alibi: whether ALiBi is added to the scores.
      dropout: dropout rate of the attention weights.

    Returns:
      "xla", "cudnn" or "plain".

    Raises:
      ConfigError: The requested implementation is unknown or does not support the options.
    """
    if implementation not in ("auto", "xla", "cudnn", "plain"):
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from auto, xla, cudnn, plain")
    if implementation in ("xla", "plain"):
        return implementation
    dtype = jnp.dtype(dtype)
    limits = {
        f"runs on NVIDIA GPUs, not on {platform}": platform not in ("gpu", "cuda"),
        f"computes in bf16 or fp16, not in {dtype}": dtype not in (jnp.bfloat16, jnp.float16),
        f"needs a head size that is a multiple of 8 up to 128, not {head_dim}": head_dim % 8 != 0 or head_dim > 128,
        "cannot mask packed documents": has_segment_ids,
        "cannot add ALiBi": has_alibi,
        "cannot drop attention weights": dropout > 0,
    }
    reasons = [reason for reason, applies in limits.items() if applies]
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
    dropout: Dropout = NO_DROPOUT,
    implementation: str = "auto",
) -> Array:
    """Computes softmax(q k^T / sqrt(K) + bias) v; a query sees the keys up to its own position, in its own segment.

    Scores and softmax are float32 (float64 for float64 inputs); the matmuls read the input type.

    Args:
      q_BxLxHxK: queries.
      k_BxLxHxK: keys, of the same type.
      v_BxLxHxK: values, of the same type.
      segment_ids_BxL: document of each token; None: one document per row. Padding counts as a document.
      alibi_slopes_H: adds -slope * (query index - key index) to the scores. A constant: it gets no gradient.
      dropout: of the attention weights. "xla" and "plain" drop the same weights for the same key.
      implementation: see `choose_attention`. "auto" depends on the default backend; a caller whose mesh has other
        devices resolves it first.

    Returns:
      (B, L, H, K) in the type of the inputs.

    Raises:
      ConfigError: the implementation is unknown or does not support the options.
    """
    chosen = choose_attention(
        implementation,
        platform=jax.default_backend(),
        dtype=q_BxLxHxK.dtype,
        head_dim=q_BxLxHxK.shape[-1],
        has_segment_ids=segment_ids_BxL is not None,
        has_alibi=alibi_slopes_H is not None,
        dropout=dropout.rate if dropout.key is not None else 0.0,
    )
    if chosen == "cudnn":
        return jax.nn.dot_product_attention(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, is_causal=True, implementation="cudnn")
    key = dropout.key if dropout.rate else None
    attend = _plain_attention if chosen == "plain" else _tiled_attention
    return attend(dropout.rate, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, alibi_slopes_H, key)


def cached_attention(
    q_BxLxHxK: Array,
    k_BxSxHxK: Array,
    v_BxSxHxK: Array,
    query_index_BxL: Array,
    *,
    alibi_slopes_H: Array | None = None,
) -> Array:
    """Attends to the slots of a cache, for decoding; a query sees the slots up to its own.

    Args:
      q_BxLxHxK: queries.
      k_BxSxHxK: keys of all S slots, written or not.
      v_BxSxHxK: values of all slots; finite in every slot.
      query_index_BxL: slot of each query.
      alibi_slopes_H: adds -slope * (query index - slot) to the scores.

    Returns:
      (B, L, H, K) in the type of the queries.
    """
    lag_BxLxS = query_index_BxL[:, :, None] - jnp.arange(k_BxSxHxK.shape[1])[None, None]
    scores_BxHxLxS = _scores(q_BxLxHxK, k_BxSxHxK)
    if alibi_slopes_H is not None:
        scores_BxHxLxS -= alibi_slopes_H[None, :, None, None] * lag_BxLxS[:, None]
    p_BxHxLxS = jax.nn.softmax(jnp.where(lag_BxLxS[:, None] >= 0, scores_BxHxLxS, tiles.MASK_VALUE))
    return _weighted_values(p_BxHxLxS, v_BxSxHxK).astype(q_BxLxHxK.dtype)


def _scores(q_BxLxHxK: Array, k_BxSxHxK: Array) -> Array:
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scale = 1 / math.sqrt(q_BxLxHxK.shape[-1])
    return scale * jnp.einsum("blhk,bshk->bhls", q_BxLxHxK, k_BxSxHxK, preferred_element_type=wide)


def _weighted_values(p_BxHxLxS: Array, v_BxSxHxK: Array) -> Array:
    p_BxHxLxS = p_BxHxLxS.astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhls,bshk->blhk", p_BxHxLxS, v_BxSxHxK)


# --- dense reference ------------------------------------------------------------------------------------


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
    lag_LxL, visible_BxHxLxL = tiles.window_visible(L, segment_ids_BxL)
    scores_BxHxLxL = _scores(q_BxLxHxK, k_BxLxHxK)
    if slopes_H is not None:
        scores_BxHxLxL -= slopes_H[None, :, None, None] * lag_LxL[None, None]
    p_BxHxLxL = jax.nn.softmax(jnp.where(visible_BxHxLxL, scores_BxHxLxL, tiles.MASK_VALUE))
    if dropout_key is not None:
        p_BxHxLxL *= tiles.window_dropout_factors(dropout_key, dropout_rate, B, H, L)
    return _weighted_values(p_BxHxLxL, v_BxLxHxK)


# --- tiled ----------------------------------------------------------------------------------------------


def _tile_scores(
    q_BxHxTxK: Array, k_BxHxTxK: Array, i: Array, j: Array, segment_ids_nxBxT: Array | None, slopes_H: Array | None
) -> Array:
    """Returns the masked scores of tile (i, j), (B, H, T, T)."""
    T, K = q_BxHxTxK.shape[2:]
    wide = jnp.promote_types(q_BxHxTxK.dtype, jnp.float32)
    s = jnp.einsum("bhik,bhjk->bhij", q_BxHxTxK, k_BxHxTxK, preferred_element_type=wide) / math.sqrt(K)
    lag_TxT, visible_BxHxTxT = tiles.visible(i, j, T, segment_ids_nxBxT)
    if slopes_H is not None:
        s -= slopes_H[None, :, None, None] * lag_TxT[None, None]
    return jnp.where(visible_BxHxTxT, s, tiles.MASK_VALUE)


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
    q, k, v = tiles.split(q_BxLxHxK), tiles.split(k_BxLxHxK), tiles.split(v_BxLxHxK)
    segment_ids_nxBxT = tiles.split_rows(segment_ids_BxL)

    def scores(i: Array, j: Array) -> Array:
        return _tile_scores(q[i], k[j], i, j, segment_ids_nxBxT, slopes_H)

    wide = jnp.promote_types(q.dtype, jnp.float32)
    out, lse = online_softmax.forward(scores, v, Dropout(dropout_key, dropout_rate), wide)
    out_BxLxHxK = tiles.join(out, q_BxLxHxK.shape[1])
    return out_BxLxHxK, (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse)


def _tiled_backward(dropout_rate: float, saved: tuple[Any, ...], dout_BxLxHxK: Array) -> tuple[Array | None, ...]:
    *inputs, segment_ids_BxL, slopes_H, dropout_key, out_BxLxHxK, lse = saved
    q, k, v, out, dout = (tiles.split(x) for x in (*inputs, out_BxLxHxK, dout_BxLxHxK))
    qT = online_softmax.transposed(q)
    segment_ids_nxBxT = tiles.split_rows(segment_ids_BxL)
    wide = lse.dtype
    dot = partial(jnp.einsum, preferred_element_type=wide)

    def tile(i: Array, j: Array) -> tuple[Array, None]:
        return _tile_scores(q[i], k[j], i, j, segment_ids_nxBxT, slopes_H), None

    def add_gradients(sums: tuple[Array, Array], i: Array, j: Array, _: None, p: Array, slope: Array) -> Any:
        dq, dkT = sums
        ds = (p * slope).astype(q.dtype)
        dq = tiles.set_tile(dq, dq[i] + dot("bhij,bhjk->bhik", ds, k[j]), i)
        return dq, tiles.set_tile(dkT, dkT[j] + dot("bhki,bhij->bhkj", qT[i], ds), j)

    init = jnp.zeros(q.shape, wide), jnp.zeros(qT.shape, wide)
    dropout = Dropout(dropout_key, dropout_rate)
    (dq, dkT), dv = online_softmax.backward(tile, add_gradients, init, v, dropout, (out, lse), dout)
    scale = 1 / math.sqrt(q.shape[-1])
    grads = (scale * dq, scale * online_softmax.transposed(dkT), dv)
    dq, dk, dv = (tiles.join(g, x.shape[1]).astype(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv, None, None, None


_tiled_attention.defvjp(_tiled_forward, _tiled_backward)
