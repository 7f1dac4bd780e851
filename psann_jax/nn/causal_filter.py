"""The causal filter on a mesh."""

from functools import partial

import jax

from psann_jax.nn.partition import per_shard
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
    """Applies `psann_jax.ops.causal_filter.causal_filter`, on a mesh to the part of each device."""
    chosen = ops.choose_filter(x_BxLxD.dtype, taps_KxD.shape[0], dilation=dilation)
    apply = partial(ops.causal_filter, max_shift=max_shift, implementation=chosen)
    if chosen not in ops.KERNELS:
        return apply(x_BxLxD, taps_KxD, reach_BxL, dilation=dilation, history_BxWxD=history_BxWxD)
    # Features that are on all devices are split as well: otherwise each would add up all gradients of x.
    x_axes = ("batch", None, "channels")
    history_axes = None if history_BxWxD is None else x_axes

    def run(x: jax.Array, taps: jax.Array, reach: jax.Array, history: jax.Array | None) -> jax.Array:
        return apply(x, taps, reach, history_BxWxD=history)

    axes = (x_axes, (None, "channels"), ("batch", None), history_axes)
    y: jax.Array = per_shard(run, axes, x_axes)(x_BxLxD, taps_KxD, reach_BxL, history_BxWxD)
    return y
