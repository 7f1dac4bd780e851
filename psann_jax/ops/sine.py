"""Damped sine activation, with polynomials for sine and cosine."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import kernels, sine_triton
from psann_jax.ops.gpu_kinds import no_triton

DecayMode = Literal["abs", "relu", "none"]

# pi as a sum of three float32 numbers. The first two have at most 11 significant bits, so that their products with
# an integer below 2^13 are exact (Cody and Waite, "Software Manual for the Elementary Functions", 1980).
_PI_PARTS = (3.140625, 9.675025939941406e-4, 1.5099580252808664e-07)
# Minimax polynomials: sin r = r + r^3 * _SIN(r^2) and cos r = 1 + r^2 * _COS(r^2) for |r| <= _MAX_REMAINDER, with
# errors below 6e-9 before rounding. The range is a little over pi/2, as x / pi is rounded to float32 first.
_MAX_REMAINDER = 1.6
_SIN = (-0.16666655242443085, 0.008332980796694756, -0.0001980401575565338, 2.5943759283109102e-06)
_COS = (-0.5, 0.04166663810610771, -0.0013888347893953323, 2.47589050559327e-05, -2.60230223148028e-07)

_BLOCK = 2**18  # elements per block of the backward pass: 1 MiB of float32, which fits the caches of a core


def damped_sine_reference(
    z: Array, amplitude_F: Array, frequency_F: Array, decay_F: Array, *, decay_mode: DecayMode = "abs"
) -> Array:
    """Reference for `damped_sine`, differentiated by JAX."""
    x = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    g = {"abs": jnp.abs, "relu": jax.nn.relu, "none": jnp.zeros_like}[decay_mode](x)
    A, f, d = (jnp.broadcast_to(p, z.shape) for p in (amplitude_F, frequency_F, decay_F))
    return (A * jnp.exp(-d * g) * jnp.sin(f * x)).astype(z.dtype)


def choose_sine(dtype: Any, decay_mode: DecayMode = "abs", uneven: str = "") -> str:
    """Chooses the implementation of `damped_sine` for z of a type, by the devices of the current mesh.

    Args:
      dtype: of z.
      decay_mode: see `damped_sine`.
      uneven: why the mesh cannot split z into equal parts; empty if it can.
    """
    if kernels.platform() != "gpu":
        reason = "for GPUs only"
    else:
        reason = uneven or ("not for float64" if dtype == jnp.float64 else no_triton(kernels.device_kind()))
    triton = kernels.Candidate("triton", reason, variant=(decay_mode, jnp.dtype(dtype).name))
    return kernels.choose("sine", triton, kernels.Candidate("polynomial", is_kernel=False))


def damped_sine(
    z: Array,
    amplitude_F: Array,
    frequency_F: Array,
    decay_F: Array,
    *,
    decay_mode: DecayMode = "abs",
    implementation: str | None = None,
) -> Array:
    """Computes A * exp(-d * g(z)) * sin(f * z) per feature, with g(z) = |z|, relu(z) or 0.

    The backward pass saves only z and the parameters, and computes sine, cosine and exponential once. Supports
    reverse-mode differentiation only. In float32 the error of the sine is at most 1.2e-7 for |f * z| up to a few tens
    and 1e-6 up to 1e4. Beyond 2.5e4 it grows like the rounding error of f * z itself, and the value stays within
    [-A, A].

    Args:
      z: (..., F) of any float type; computed in float32, or in float64 if z is float64.
      amplitude_F: A, float32 (float64 if z is float64), like the next two.
      frequency_F: f, positive.
      decay_F: d, positive; unused if `decay_mode` is "none".
      decay_mode: selects g: "abs", "relu" or "none".
      implementation: from `choose_sine`, which is called if this is None: "polynomial", or "triton" with the backward
        pass in one GPU kernel, which the compiler cannot partition over devices.

    Returns:
      (..., F) in the type of z; NaN where z is NaN or infinite.
    """
    chosen = implementation or choose_sine(z.dtype, decay_mode)
    return _damped_sine((decay_mode, chosen), z, amplitude_F, frequency_F, decay_F)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _damped_sine(static: tuple[DecayMode, str], z: Array, A_F: Array, f_F: Array, d_F: Array) -> Array:
    def value(z: Array, A_F: Array, f_F: Array, d_F: Array) -> Array:
        x, g, _ = _decay(static[0], z)
        A, f, d = (jnp.broadcast_to(p, z.shape) for p in (A_F, f_F, d_F))
        sin = jnp.sin(f * x) if x.dtype == jnp.float64 else fast_sincos(f * x)[0]
        return (A * jnp.exp(-d * g) * sin).astype(z.dtype)

    # XLA's CPU backend rounds some bfloat16 values less often if the function is not inlined before compilation.
    return lax.platform_dependent(z, A_F, f_F, d_F, cpu=value, default=value)


def _forward(static: tuple[DecayMode, str], *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return _damped_sine(static, *args), args


def _backward(static: tuple[DecayMode, str], saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    decay_mode, implementation = static
    z, A_F, f_F, d_F = saved
    args = (z, A_F, f_F, d_F, dy)
    if implementation == "triton":
        dz, dA_F, df_F, dd_F = sine_triton.gradients(partial(sine_terms, decay_mode, _sincos_by_floor), *args)
    elif z.dtype == jnp.float64:
        dz, dA_F, df_F, dd_F = _gradients(decay_mode, lambda x: (jnp.sin(x), jnp.cos(x)), *args)
    else:
        whole = partial(_gradients, decay_mode, fast_sincos)
        blocks = partial(by_blocks, whole)
        # Chosen when the program is lowered: the default backend may be a GPU while the devices are CPUs.
        dz, dA_F, df_F, dd_F = lax.platform_dependent(*args, cpu=blocks, default=whole)
    return dz, dA_F.astype(A_F.dtype), (A_F * df_F).astype(f_F.dtype), (-A_F * dd_F).astype(d_F.dtype)


_damped_sine.defvjp(_forward, _backward)


@kernels.example("sine.triton")
def _example(decay_mode: DecayMode, dtype: str) -> kernels.Example:
    def inputs(key: Array) -> tuple[Array, ...]:
        z_key, *keys = jax.random.split(key, 4)
        z = 3 * jax.random.normal(z_key, (3, 50, 200))
        return z.astype(dtype), *(jax.random.uniform(k, (200,), minval=0.1, maxval=2.0) for k in keys)

    kernel = partial(damped_sine, decay_mode=decay_mode, implementation="triton")
    reference = partial(damped_sine_reference, decay_mode=decay_mode)
    return kernels.Example(kernel, reference, inputs, 1e-5 if dtype == "float32" else 0.01)


SinCos = Callable[[Array], tuple[Array, Array]]


def sine_terms(
    decay_mode: DecayMode, sincos: SinCos, z: Array, A: Array, f: Array, d: Array, dy: Array
) -> tuple[Array, ...]:
    """Returns the gradient of z and the summands of those of A, f / A and -d / A, for arrays that broadcast to z."""
    x, g, slope = _decay(decay_mode, z)
    sin, cos = sincos(f * x)
    damped = dy.astype(x.dtype) * jnp.exp(-d * g)
    dz = A * (f * damped * cos - d * slope * damped * sin)
    return dz.astype(z.dtype), damped * sin, damped * cos * x, damped * sin * g


def _gradients(
    decay_mode: DecayMode, sincos: SinCos, z: Array, A_F: Array, f_F: Array, d_F: Array, dy: Array
) -> tuple[Array, ...]:
    """Returns the gradient of z and, summed over all axes but the last, those of A, f / A and -d / A."""
    A, f, d = (jnp.broadcast_to(p, z.shape) for p in (A_F, f_F, d_F))
    dz, *terms = sine_terms(decay_mode, sincos, z, A, f, d, dy)
    rows = tuple(range(z.ndim - 1))
    return dz, *(term.sum(rows) for term in terms)


def by_blocks(gradients: Callable[..., tuple[Array, ...]], z: Array, *params_and_dy: Array) -> tuple[Array, ...]:
    """Calls `gradients` in a loop over blocks of positions (the last axis but one), for CPUs.

    The arrays of a block stay in the caches until they are summed. And XLA's CPU backend recomputes an elementwise
    result for each consumer, even for a transposed copy, where it no longer vectorises; it computes the result of a
    loop once. This halves the time of an MLP of 4096 x 256 x 1024, forward and backward.

    Args:
      gradients: (z, *params, dy) -> the gradient of z, and those of the parameters, summed over all axes but the last.
      z: (..., F), inputs of an elementwise function.
      *params_and_dy: its parameters, each (F,), and the gradient of its result.

    Returns:
      What `gradients` returns for all positions.
    """
    if z.ndim == 1 or kernels.window_parts() > 1:  # each device already has a block of positions
        return gradients(z, *params_and_dy)
    *params, dy = params_and_dy
    axis, length = z.ndim - 2, z.shape[-2]
    size = max(1, min(length, _BLOCK * length // max(1, z.size)))

    def add_block(start: Array | int, size: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        dz, *sums = carry
        z_block, dy_block = (lax.dynamic_slice_in_dim(a, start, size, axis) for a in (z, dz))
        dz_block, *block_sums = gradients(z_block, *params, dy_block)
        dz = lax.dynamic_update_slice_in_dim(dz, dz_block, start, axis)
        return dz, *(a + b for a, b in zip(sums, block_sums, strict=True))

    zero = jnp.zeros(z.shape[-1:], jnp.promote_types(z.dtype, jnp.float32))
    # dz overwrites dy block by block; nothing else reads dy.
    carry = lax.fori_loop(0, length // size, lambda i, c: add_block(i * size, size, c), (dy, *(zero for _ in params)))
    remainder = length % size
    return add_block(length - remainder, remainder, carry) if remainder else carry


def _decay(decay_mode: DecayMode, z: Array) -> tuple[Array, Array, Array]:
    """Returns z in the type of the computation, g(z) and g'(z)."""
    x = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if decay_mode == "abs":
        return x, jnp.abs(x), jnp.sign(x)
    if decay_mode == "relu":
        return x, jnp.maximum(x, 0), (x > 0).astype(x.dtype)
    return x, jnp.zeros_like(x), jnp.zeros_like(x)


def _nearest(x: Array) -> Array:
    # XLA would fold the usual trick, adding and subtracting 1.5 * 2^23, to nothing.
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


def fast_sincos(x: Array, nearest: Callable[[Array], Array] = _nearest) -> tuple[Array, Array]:
    """Returns the sine and cosine of float32 x, with operations that XLA vectorises on CPUs.

    Args:
      x: angles.
      nearest: rounds to integers; may err between two integers that are about equally near.
    """
    n = nearest(x * (1 / math.pi))
    r = ((x - n * _PI_PARTS[0]) - n * _PI_PARTS[1]) - n * _PI_PARTS[2]
    r = lax.clamp(-_MAX_REMAINDER, r, _MAX_REMAINDER)  # keeps the results for huge arguments within [-1, 1]
    sign_bit = lax.shift_left(n.astype(jnp.int32), jnp.int32(31))

    def signed(value: Array) -> Array:
        return lax.bitcast_convert_type(lax.bitcast_convert_type(value, jnp.int32) ^ sign_bit, jnp.float32)

    u = r * r
    return signed(r + r * u * _polynomial(_SIN, u)), signed(1 + u * _polynomial(_COS, u))


def _sincos_by_floor(x: Array) -> tuple[Array, Array]:
    """`fast_sincos` without an operation that kernels for GPUs lack."""
    return fast_sincos(x, lambda turns: lax.floor(turns + 0.5))


def _polynomial(coefficients: tuple[float, ...], u: Array) -> Array:
    total = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = c + u * total
    return total
