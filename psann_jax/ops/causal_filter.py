"""A depthwise causal filter with many taps, with gradients that XLA can vectorise."""

import jax
import jax.numpy as jnp
from jax import Array, lax

_POSITIONS = 16  # that one pass over the sums of the taps' gradient takes in


def shifted_sum(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array, dilation: int | Array = 1) -> Array:
    """`causal_filter` in its plain form, differentiated by JAX; and for taps that are `dilation` tokens apart.

    A traced dilation needs (K - 1) * dilation earlier positions, or a reach that stays below their number.
    """
    length = reach_BxL.shape[1]
    pad = padded_BxPxD.shape[1] - length
    wide = jnp.promote_types(padded_BxPxD.dtype, jnp.float32)
    y = jnp.zeros((*reach_BxL.shape, padded_BxPxD.shape[2]), wide)
    for k in range(taps_KxD.shape[0]):
        shift = k * dilation
        if isinstance(shift, int):
            before = max(shift - pad, 0)  # positions that would look past the beginning
            if before >= length:
                break
            start = max(pad - shift, 0)
            shifted = padded_BxPxD[:, start : start + length - before]
            shifted = jnp.pad(shifted, ((0, 0), (before, 0), (0, 0)))
        else:
            shifted = lax.dynamic_slice_in_dim(padded_BxPxD, jnp.maximum(pad - shift, 0), length, axis=1)
        y += jnp.where((reach_BxL >= shift)[..., None], shifted * taps_KxD[k].astype(wide), 0)
    return y.astype(padded_BxPxD.dtype)


@jax.custom_vjp
def causal_filter(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array) -> Array:
    """y[t] = sum_k taps[k] * x[t - k] over the taps that reach back no farther than the document of t goes.

    Args:
      padded_BxPxD: x, (B, L, D), behind P - L earlier positions, at least min(K - 1, L) of them.
      taps_KxD: tap 0 weighs the position itself.
      reach_BxL: integers; position t sees that many positions before it, at most t + P - L.

    Returns:
      (B, L, D), in the dtype of x; the sums are of float32 at least.
    """
    return shifted_sum(padded_BxPxD, taps_KxD, reach_BxL)


def _forward(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array) -> tuple[Array, tuple[Array, ...]]:
    return shifted_sum(padded_BxPxD, taps_KxD, reach_BxL), (padded_BxPxD, taps_KxD, reach_BxL)


def _backward(saved: tuple[Array, ...], dy_BxLxD: Array) -> tuple[Array, Array, None]:
    padded_BxPxD, taps_KxD, reach_BxL = saved
    dpadded = _input_gradient(padded_BxPxD, taps_KxD, reach_BxL, dy_BxLxD)
    dtaps = _taps_gradient(padded_BxPxD, taps_KxD.shape[0], reach_BxL, dy_BxLxD)
    return dpadded.astype(padded_BxPxD.dtype), dtaps.astype(taps_KxD.dtype), None


causal_filter.defvjp(_forward, _backward)


def _input_gradient(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array, dy_BxLxD: Array) -> Array:
    """One sum for every element, where JAX's own rule adds up K padded arrays."""
    size, length, last = padded_BxPxD.shape[1], dy_BxLxD.shape[1], taps_KxD.shape[0] - 1
    around = (size - length, last)
    dy = jnp.pad(dy_BxLxD, ((0, 0), around, (0, 0)))
    reach = jnp.pad(reach_BxL, ((0, 0), around), constant_values=-1)
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    dx = jnp.zeros(padded_BxPxD.shape, wide)
    for k in range(last + 1):
        seen = reach[:, k : k + size, None] >= k
        dx += jnp.where(seen, dy[:, k : k + size] * taps_KxD[k].astype(wide), 0)
    return dx


def _taps_gradient(padded_BxPxD: Array, n_taps: int, reach_BxL: Array, dy_BxLxD: Array) -> Array:
    """dtaps[k] = sum over rows and t of dy[t] * x[t - k].

    K reductions over all positions, which XLA's CPU backend does not vectorise. Here the sums for all taps of a row,
    (K, D), stay in the cache while a loop goes through the positions. Backwards in time, so that the earlier inputs
    of a position lie in the order of the taps.
    """
    batch, length, features = dy_BxLxD.shape
    fill = -length % _POSITIONS
    wide = jnp.promote_types(dy_BxLxD.dtype, jnp.float32)
    reversed_x = jnp.pad(jnp.flip(padded_BxPxD, 1), ((0, 0), (fill, n_taps - 1), (0, 0)))
    dy = jnp.pad(dy_BxLxD, ((0, 0), (0, fill), (0, 0)))
    reach = jnp.pad(reach_BxL, ((0, 0), (0, fill)), constant_values=-1)

    def add(i: Array, sums_BxKxD: Array) -> Array:
        start = i * _POSITIONS
        dy_BxTxD = lax.dynamic_slice_in_dim(dy, start, _POSITIONS, 1).astype(wide)
        reach_BxT = lax.dynamic_slice_in_dim(reach, start, _POSITIONS, 1)
        first = length + fill - _POSITIONS - start
        x = lax.dynamic_slice_in_dim(reversed_x, first, _POSITIONS + n_taps - 1, 1)
        for t in range(_POSITIONS):
            offset = _POSITIONS - 1 - t
            seen_BxK = reach_BxT[:, t, None] >= jnp.arange(n_taps)
            product_BxKxD = x[:, offset : offset + n_taps].astype(wide) * dy_BxTxD[:, t, None]
            sums_BxKxD += jnp.where(seen_BxK[..., None], product_BxKxD, 0)
        return sums_BxKxD

    zeros = jnp.zeros((batch, n_taps, features), wide)
    return lax.fori_loop(0, (length + fill) // _POSITIONS, add, zeros).sum(0)
