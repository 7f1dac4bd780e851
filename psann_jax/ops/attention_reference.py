"""The dense reference of causal attention, and the products that decoding shares with it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import kernels, tiles
from psann_jax.ops.tiles import NO_DROPOUT, Dropout


class Variant(NamedTuple):
    """What decides which code of a kernel of causal attention runs.

    Attributes:
      dtype: name of the type of queries, keys and values.
      head_dim: features per head.
      group: heads of queries per head of keys and values.
      has_window: whether queries see the last tokens only.
      dropout: dropout rate of the attention weights.
      has_segment_ids: whether packed documents are masked.
      is_long: whether the kernel has another form for long windows, and the window is one.
    """

    dtype: str = "bfloat16"
    head_dim: int = 64
    group: int = 1
    has_window: bool = False
    dropout: float = 0.0
    has_segment_ids: bool = True
    is_long: bool = False

    def example(self, attend: Callable[..., Array], segment_ids_BxL: Array, tolerance: float) -> kernels.Example:
        """Returns the problem on which a kernel of this variant is compared with the reference.

        Args:
          attend: function like `exact_attention`.
          segment_ids_BxL: documents of its windows, unused without `has_segment_ids`.
          tolerance: see `Example`.
        """
        (B, L), heads = segment_ids_BxL.shape, 2

        def inputs(key: Array) -> tuple[Array, ...]:
            q, k, v = jax.random.normal(key, (3, B, L, heads * self.group, self.head_dim), jnp.dtype(self.dtype))
            return q, k[:, :, :heads], v[:, :, :heads]

        def run(f: Callable[..., Array], q: Array, k: Array, v: Array) -> Array:
            dropout = Dropout(jax.random.key(0), self.dropout) if self.dropout else NO_DROPOUT
            ids = segment_ids_BxL if self.has_segment_ids else None
            return f(q, k, v, ids, dropout, window=50 if self.has_window else 0)

        return kernels.Example(partial(run, attend), partial(run, exact_attention), inputs, tolerance)


class Static(NamedTuple):
    """What is fixed when an attention is compiled.

    Attributes:
      dropout_rate: of the attention weights.
      window: a query sees itself and the window - 1 tokens before it; 0: all tokens before it.
    """

    dropout_rate: float = 0.0
    window: int = 0


def scores(q_BxLxHxK: Array, k_BxSxGxK: Array) -> Array:
    """Returns q k^T / sqrt(K), (B, H, L, S), at least float32; query head h reads the key head h // (H / G)."""
    B, L, H, K = q_BxLxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scale = 1 / math.sqrt(K)
    if G == H:
        return scale * jnp.einsum("blhk,bshk->bhls", q_BxLxHxK, k_BxSxGxK, preferred_element_type=wide)
    q_BxLxGxRxK = q_BxLxHxK.reshape(B, L, G, -1, K)
    s_BxGxRxLxS = scale * jnp.einsum("blgrk,bsgk->bgrls", q_BxLxGxRxK, k_BxSxGxK, preferred_element_type=wide)
    return s_BxGxRxLxS.reshape(B, H, L, S)


def weighted_values(p_BxHxLxS: Array, v_BxSxGxK: Array) -> Array:
    """Returns p v, (B, L, H, K), in the type of the values; grouped like `scores`."""
    B, H, L, S = p_BxHxLxS.shape
    G, K = v_BxSxGxK.shape[2:]
    p_BxHxLxS = p_BxHxLxS.astype(v_BxSxGxK.dtype)
    if G == H:
        return jnp.einsum("bhls,bshk->blhk", p_BxHxLxS, v_BxSxGxK)
    p_BxGxRxLxS = p_BxHxLxS.reshape(B, G, -1, L, S)
    return jnp.einsum("bgrls,bsgk->blgrk", p_BxGxRxLxS, v_BxSxGxK).reshape(B, L, H, K)


def plain_attention(
    static: Static,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    slopes_H: Array | None,
    dropout_key: Array | None,
) -> Array:
    """Computes what `causal_attention` describes, from all scores at once; differentiated by JAX."""
    B, L, H, _ = q_BxLxHxK.shape
    lag_LxL, visible_BxHxLxL = tiles.window_visible(L, segment_ids_BxL, static.window)
    scores_BxHxLxL = scores(q_BxLxHxK, k_BxLxGxK)
    if slopes_H is not None:
        scores_BxHxLxL -= slopes_H[None, :, None, None] * lag_LxL[None, None]
    p_BxHxLxL = jax.nn.softmax(jnp.where(visible_BxHxLxL, scores_BxHxLxL, tiles.MASK_VALUE))
    if dropout_key is not None:
        p_BxHxLxL *= tiles.window_dropout_factors(dropout_key, static.dropout_rate, B, H, L)
    return weighted_values(p_BxHxLxL, v_BxLxGxK)


def exact_attention(
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None = None,
    dropout: Dropout = NO_DROPOUT,
    *,
    window: int = 0,
) -> Array:
    """Computes `plain_attention` in float32 at the highest precision of the device, for the examples of kernels."""
    q, k, v = (x.astype(jnp.float32) for x in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
    with jax.default_matmul_precision("highest"):
        static = Static(dropout.rate, window)
        return plain_attention(static, q, k, v, segment_ids_BxL, None, dropout.key).astype(q_BxLxHxK.dtype)
