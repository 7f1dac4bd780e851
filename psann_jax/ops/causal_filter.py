"""Depthwise causal filters that stop at document borders, with gradients that XLA vectorises on CPUs."""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import causal_filter_mosaic, causal_filter_triton, kernels
from psann_jax.ops.gpu_kinds import no_triton

_POSITIONS = 16  # positions per pass over the sums of the taps' gradient
_FEW_TAPS = 4  # for which XLA's kernels read and write little more than necessary
KERNELS: dict[str, ModuleType] = {"triton": causal_filter_triton, "mosaic": causal_filter_mosaic}


def choose_filter(dtype: Any, n_taps: int, *, dilation: int | Array = 1, uneven: str = "") -> str:
    """Chooses the implementation of `causal_filter`, by the devices of the current mesh.

    Args:
      dtype: of x.
      n_taps: K.
      dilation: distance between taps.
      uneven: why the mesh cannot split x into equal parts; empty if it can.

    Returns:
      "triton" or "mosaic", kernels for GPUs and TPUs, which the compiler cannot partition over devices; "sums", with
      gradients for CPUs; or "autodiff". The first three need taps without a distance.
    """
    platform = kernels.platform()
    sparse = "" if isinstance(dilation, int) and dilation == 1 else "the taps are apart"
    small = "few taps" if n_taps <= _FEW_TAPS else ""
    reason = sparse or small or uneven or ("not for float64" if dtype == jnp.float64 else "")
    on_gpu = (reason or no_triton(kernels.device_kind())) if platform == "gpu" else "for GPUs only"
    many = "" if n_taps <= causal_filter_mosaic.MAX_TAPS else "too many taps"
    variant = jnp.dtype(dtype).name, n_taps
    return kernels.choose(
        "causal_filter",
        kernels.Candidate("triton", on_gpu, variant=variant),
        kernels.Candidate("mosaic", (reason or many) if platform == "tpu" else "for TPUs only", variant=variant),
        kernels.Candidate("sums", sparse if platform == "cpu" else "for CPUs only", is_kernel=False),
        kernels.Candidate("autodiff", is_kernel=False),
    )


def causal_filter(
    x_BxLxD: Array,
    taps_KxD: Array,
    reach_BxL: Array,
    *,
    dilation: int | Array = 1,
    max_shift: int,
    history_BxWxD: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """Computes y[t] = sum_k taps[k] * x[t - k * dilation] over the k with t - k * dilation in the document of t.

    Args:
      x_BxLxD: input.
      taps_KxD: filter taps; tap 0 is the weight of the token itself.
      reach_BxL: number of earlier tokens of its document that each token has, the farthest the filter looks back.
      dilation: distance between taps in tokens; may be traced.
      max_shift: static upper bound of (K - 1) * dilation.
      history_BxWxD: the W = max_shift inputs before x when decoding with a cache, zeros before the first token.
      implementation: from `choose_filter`, which is called if this is None.

    Returns:
      (B, L, D) in the type of x; summed in float32 or wider.
    """
    length = x_BxLxD.shape[1]
    chosen = implementation or choose_filter(x_BxLxD.dtype, taps_KxD.shape[0], dilation=dilation)
    if history_BxWxD is not None:
        padded = jnp.concatenate([history_BxWxD, x_BxLxD], axis=1)
    elif chosen in KERNELS:
        padded = x_BxLxD
    else:
        pad = min(max_shift, length)  # taps that look back farther than the window have no effect
        padded = jnp.pad(x_BxLxD, ((0, 0), (pad, 0), (0, 0)))
    if chosen in KERNELS:
        # The kernels need an array that holds all that a position reaches, so the history counts as positions.
        earlier = padded.shape[1] - length
        reach = jnp.minimum(jnp.pad(reach_BxL, ((0, 0), (earlier, 0))), jnp.arange(padded.shape[1]))
        return _by_kernel(chosen, padded, taps_KxD, reach)[:, earlier:]
    if chosen == "sums":
        return padded_filter(padded, taps_KxD, reach_BxL)
    return padded_filter_reference(padded, taps_KxD, reach_BxL, dilation)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(kernel: str, x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array) -> Array:
    y: Array = KERNELS[kernel].forward(x_BxLxD, taps_KxD, reach_BxL)
    return y


def _forward_kernel(kernel: str, *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return _by_kernel(kernel, *args), args


def _backward_kernels(kernel: str, saved: tuple[Array, Array, Array], dy_BxLxD: Array) -> tuple[Array, Array, None]:
    x, taps, reach = saved
    dx, dtaps = KERNELS[kernel].gradients(x, taps, reach, dy_BxLxD)
    return dx, dtaps.astype(taps.dtype), None


_by_kernel.defvjp(_forward_kernel, _backward_kernels)


def _example(kernel: str, dtype: str, n_taps: int) -> kernels.Example:
    def inputs(key: Array) -> tuple[Array, ...]:
        x_key, taps_key = jax.random.split(key)
        position = jnp.arange(300)
        reach = jnp.stack([position, position % 77])
        x_BxLxD = jax.random.normal(x_key, (2, 300, 200)).astype(dtype)
        return x_BxLxD, jax.random.normal(taps_key, (n_taps, 200)), reach

    f = partial(causal_filter, max_shift=n_taps - 1)

    def reference(x_BxLxD: Array, taps_KxD: Array, reach_BxL: Array) -> Array:
        # JAX would add up the gradients of x in its type.
        wide = x_BxLxD.astype(jnp.float32)
        return f(wide, taps_KxD, reach_BxL, implementation="autodiff").astype(x_BxLxD.dtype)

    tolerance = 1e-5 if dtype == "float32" else 0.01
    return kernels.Example(partial(f, implementation=kernel), reference, inputs, tolerance)


for _name in KERNELS:
    kernels.example(f"causal_filter.{_name}")(partial(_example, _name))


def next_history(history_BxWxD: Array, x_BxLxD: Array, valid_B: Array) -> Array:
    """Returns the last W inputs, (B, W, D), after the first `valid` tokens of each row of x."""
    width = history_BxWxD.shape[1]
    both = jnp.concatenate([history_BxWxD, x_BxLxD], axis=1)
    return jax.vmap(lambda row, start: lax.dynamic_slice_in_dim(row, start, width))(both, valid_B)


def padded_filter_reference(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array, dilation: int | Array = 1) -> Array:
    """Reference for `padded_filter`, differentiated by JAX; supports taps that are `dilation` tokens apart.

    A traced dilation needs (K - 1) * dilation earlier positions, or a reach below their number.
    """
    length = reach_BxL.shape[1]
    pad = padded_BxPxD.shape[1] - length
    wide = jnp.promote_types(padded_BxPxD.dtype, jnp.float32)
    y = jnp.zeros((*reach_BxL.shape, padded_BxPxD.shape[2]), wide)
    for k in range(taps_KxD.shape[0]):
        shift = k * dilation
        if isinstance(shift, int):
            before = max(shift - pad, 0)  # positions whose source lies before the padding
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
def padded_filter(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array) -> Array:
    """Computes y[t] = sum_k taps[k] * x[t - k] over the k <= reach[t].

    Args:
      padded_BxPxD: x (B, L, D) preceded by P - L earlier positions, at least min(K - 1, L) of them.
      taps_KxD: filter taps; tap 0 is the weight of the position itself.
      reach_BxL: integers, the number of earlier positions that position t sees, at most t + P - L.

    Returns:
      (B, L, D) in the type of x; summed in float32 or wider.
    """
    return padded_filter_reference(padded_BxPxD, taps_KxD, reach_BxL)


def _forward(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array) -> tuple[Array, tuple[Array, ...]]:
    return padded_filter_reference(padded_BxPxD, taps_KxD, reach_BxL), (padded_BxPxD, taps_KxD, reach_BxL)


def _backward(saved: tuple[Array, ...], dy_BxLxD: Array) -> tuple[Array, Array, None]:
    padded_BxPxD, taps_KxD, reach_BxL = saved
    dpadded = _input_gradient(padded_BxPxD, taps_KxD, reach_BxL, dy_BxLxD)
    dtaps = _taps_gradient(padded_BxPxD, taps_KxD.shape[0], reach_BxL, dy_BxLxD)
    return dpadded.astype(padded_BxPxD.dtype), dtaps.astype(taps_KxD.dtype), None


padded_filter.defvjp(_forward, _backward)


def _input_gradient(padded_BxPxD: Array, taps_KxD: Array, reach_BxL: Array, dy_BxLxD: Array) -> Array:
    """Computes the gradient of `padded` with one sum per element, where JAX's own rule adds K padded arrays."""
    size, length, last = padded_BxPxD.shape[1], dy_BxLxD.shape[1], taps_KxD.shape[0] - 1
    padding = (size - length, last)
    dy = jnp.pad(dy_BxLxD, ((0, 0), padding, (0, 0)))
    reach = jnp.pad(reach_BxL, ((0, 0), padding), constant_values=-1)
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    dx = jnp.zeros(padded_BxPxD.shape, wide)
    for k in range(last + 1):
        visible = reach[:, k : k + size, None] >= k
        dx += jnp.where(visible, dy[:, k : k + size] * taps_KxD[k].astype(wide), 0)
    return dx


def _taps_gradient(padded_BxPxD: Array, n_taps: int, reach_BxL: Array, dy_BxLxD: Array) -> Array:
    """Computes dtaps[k] = sum over rows and t of dy[t] * x[t - k].

    XLA's CPU backend does not vectorise K reductions over all positions. Instead, the sums of all taps, (K, D) per row,
    stay in the caches while a loop visits the positions. x is reversed in time, so that the inputs that a position sees
    lie in the order of the taps.
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
            visible_BxK = reach_BxT[:, t, None] >= jnp.arange(n_taps)
            product_BxKxD = x[:, offset : offset + n_taps].astype(wide) * dy_BxTxD[:, t, None]
            sums_BxKxD += jnp.where(visible_BxK[..., None], product_BxKxD, 0)
        return sums_BxKxD

    zeros = jnp.zeros((batch, n_taps, features), wide)
    return lax.fori_loop(0, (length + fill) // _POSITIONS, add, zeros).sum(0)
