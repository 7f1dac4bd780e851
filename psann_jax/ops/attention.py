"""Causal attention of a window, by several implementations, and of queries to a cache."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import tiles
from psann_jax.ops.attention_choice import AttentionCase, choose_attention
from psann_jax.ops.attention_cudnn import cudnn_attention
from psann_jax.ops.attention_dropout import mask_words
from psann_jax.ops.attention_reference import plain_attention, scores, weighted_values
from psann_jax.ops.attention_splash import splash_attention
from psann_jax.ops.attention_tiled import tiled_attention
from psann_jax.ops.attention_triton import triton_attention
from psann_jax.ops.tiles import NO_DROPOUT, Dropout

Kernel = Callable[..., Array]

# Functions of queries, keys, values and segment ids on one device; the compiler cannot partition them. Those that can
# drop weights take `attention_dropout.MaskWords`, too, see `kernel_with_dropout`.
KERNELS: dict[str, Kernel] = {
    "cudnn": cudnn_attention,
    "cudnn_packed": cudnn_attention,
    "triton": triton_attention,
    "splash": splash_attention,
}


def kernel_with_dropout(name: str, dropout: Dropout, shape: tuple[int, ...]) -> tuple[Kernel, tuple[Any, ...]]:
    """Returns a kernel and its arguments after the segment ids: a `MaskWords` if weights are dropped, else none.

    Args:
      name: of the kernel.
      dropout: of the attention weights.
      shape: of the queries of all devices, (B, L, H, K).
    """
    if dropout.key is None or not dropout.rate:
        return KERNELS[name], ()
    B, L, H, _ = shape
    return partial(KERNELS[name], dropout_rate=dropout.rate), (mask_words(dropout.key, B, H, L),)


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
      segment_ids_BxL: document of each token; None: one document per row. Padding counts as a document. An id must
        not appear again after another one: kernels begin a new document there, "xla" and "plain" continue the old one.
      alibi_slopes_H: adds -slope * (query index - key index) to the scores. A constant: it gets no gradient.
      dropout: of the attention weights. All implementations drop the same weights for the same key on one platform.
      implementation: see `attention_choice.choose_attention`.

    Returns:
      (B, L, H, K) in the type of the inputs.

    Raises:
      ConfigError: the implementation is unknown or does not support the options.
    """
    rate = dropout.rate if dropout.key is not None else 0.0
    has_segment_ids, has_alibi = segment_ids_BxL is not None, alibi_slopes_H is not None
    case = AttentionCase(
        q_BxLxHxK.dtype, q_BxLxHxK.shape[-1], has_segment_ids, has_alibi, rate, shard_size=q_BxLxHxK.size
    )
    chosen = choose_attention(implementation, case)
    if chosen in KERNELS:
        kernel, words = kernel_with_dropout(chosen, dropout, q_BxLxHxK.shape)
        return kernel(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, *words)
    key = dropout.key if dropout.rate else None
    attend = plain_attention if chosen == "plain" else tiled_attention
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
    scores_BxHxLxS = scores(q_BxLxHxK, k_BxSxHxK)
    if alibi_slopes_H is not None:
        scores_BxHxLxS -= alibi_slopes_H[None, :, None, None] * lag_BxLxS[:, None]
    p_BxHxLxS = jax.nn.softmax(jnp.where(lag_BxLxS[:, None] >= 0, scores_BxHxLxS, tiles.MASK_VALUE))
    return weighted_values(p_BxHxLxS, v_BxSxHxK).astype(q_BxLxHxK.dtype)
