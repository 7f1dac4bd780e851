"""The causal filter on a mesh."""

from functools import partial

import jax

from psann_jax.nn.partition import per_shard, shard_of
from psann_jax.ops import causal_filter as ops
from psann_jax.ops import kernels
from psann_jax.ops.ring import columns_before


def causal_filter(
    x_BxLxD: jax.Array,
    taps_KxD: jax.Array,
    reach_BxL: jax.Array,
    *,
    dilation: int | jax.Array = 1,
    max_shift: int,
    history_BxWxD: jax.Array | None = None,
) -> jax.Array:
    """Applies `psann_jax.ops.causal_filter.causal_filter`, on a mesh to the part of each device.

    If a window is divided over devices, each gets the columns before its part from the devices that hold them.
    """
    # Features that are on all devices are split as well: otherwise each would add up all gradients of x.
    x_axes = ("batch", "time", "channels")
    uneven = shard_of(x_BxLxD.shape, x_axes)[1]
    chosen = ops.choose_filter(x_BxLxD.dtype, taps_KxD.shape[0], dilation=dilation, uneven=uneven)
    apply = partial(ops.causal_filter, max_shift=max_shift, implementation=chosen)
    divided = kernels.window_parts() > 1 and not uneven
    if chosen not in ops.KERNELS and not divided:
        return apply(x_BxLxD, taps_KxD, reach_BxL, dilation=dilation, history_BxWxD=history_BxWxD)
    history_axes = None if history_BxWxD is None else x_axes

    def run(
        x: jax.Array, taps: jax.Array, reach: jax.Array, history: jax.Array | None, traced: jax.Array | None
    ) -> jax.Array:
        if divided:
            history = columns_before(x, min(max_shift, x_BxLxD.shape[1]))
        return apply(x, taps, reach, dilation=dilation if traced is None else traced, history_BxWxD=history)

    traced = None if isinstance(dilation, int) else dilation
    axes = (x_axes, (None, "channels"), ("batch", "time"), history_axes, None if traced is None else ())
    y: jax.Array = per_shard(run, axes, x_axes)(x_BxLxD, taps_KxD, reach_BxL, history_BxWxD, traced)
    return y
