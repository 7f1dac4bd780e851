"""A depthwise causal filter along a window that stops at document borders."""

import jax
import jax.numpy as jnp

from psann_jax.ops import causal_filter as ops


def causal_filter(
    x_BxLxD: jax.Array,
    taps_KxD: jax.Array,
    reach_BxL: jax.Array,
    *,
    dilation: int | jax.Array = 1,
    max_shift: int,
    history_BxWxD: jax.Array | None = None,
) -> jax.Array:
    """y[t] = sum_k taps[k] * x[t - k * dilation], where t - k * dilation is in the document of t.

    Args:
      x_BxLxD: input.
      taps_KxD: weights; tap 0 weighs the token itself.
      reach_BxL: earlier tokens of the document of each token; the filter sees no farther.
      dilation: tokens between taps; may be traced.
      max_shift: static upper bound of (K - 1) * dilation.
      history_BxWxD: the W = max_shift inputs before x, when decoding with a cache; zeros where there were none.

    Returns:
      (B, L, D), in the dtype of x.
    """
    length = x_BxLxD.shape[1]
    if history_BxWxD is None:
        pad = min(max_shift, length)  # taps farther back than the window see nothing
        padded = jnp.pad(x_BxLxD, ((0, 0), (pad, 0), (0, 0)))
    else:
        pad = max_shift
        padded = jnp.concatenate([history_BxWxD, x_BxLxD], axis=1)
    if isinstance(dilation, int) and dilation == 1:
        return ops.causal_filter(padded, taps_KxD, reach_BxL)
    return ops.shifted_sum(padded, taps_KxD, reach_BxL, dilation)


def next_history(history_BxWxD: jax.Array, x_BxLxD: jax.Array, valid_B: jax.Array) -> jax.Array:
    """The last W inputs after the first `valid` tokens of each row of x have been taken in, (B, W, D)."""
    width = history_BxWxD.shape[1]
    both = jnp.concatenate([history_BxWxD, x_BxLxD], axis=1)
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, width))(both, valid_B)
