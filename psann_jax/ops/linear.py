"""A matrix product with a weight gradient that is fast on CPUs and summed over devices as seldom as possible."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.window_parts import parts_as_rows

_wide: ContextVar[bool] = ContextVar("wide", default=False)


@contextlib.contextmanager
def wide_kernel_gradients(wide: bool) -> Iterator[None]:
    """Context in which the kernel gradients of 16-bit products are float32 from the start, not rounded first.

    XLA can then move their sum over devices out of a loop that adds them up. Without a loop, 16-bit gradients take half
    the bytes.
    """
    token = _wide.set(wide)
    try:
        yield
    finally:
        _wide.reset(token)


class _Options(NamedTuple):
    """Static choices.

    Attributes:
      on_cpu: whether the order of operands is that for CPUs.
      wide: see `wide_kernel_gradients`.
      parts: see `parts_as_rows`.
    """

    on_cpu: bool
    wide: bool
    parts: int


def matmul_reference(x: Array, kernel_DxF: Array) -> Array:
    """Reference for `matmul`, differentiated by JAX."""
    return x @ kernel_DxF.astype(x.dtype)


def matmul(x: Array, kernel_DxF: Array) -> Array:
    """Multiplies x by a kernel, with a kernel gradient in the operand order that is fastest on CPUs.

    The gradient is the product a^T b over R rows. On a CPU it is fastest when a is the narrower operand and neither is
    transposed in memory. JAX's rule always puts the gradient of the output on the left; XLA then copies one operand,
    which can take three times as long as the product itself.

    Args:
      x: (..., D).
      kernel_DxF: kernel, cast to the type of x.

    Returns:
      (..., F) in the type of x. The gradient of the kernel is rounded to that type, except in
      `wide_kernel_gradients`.
    """
    return _matmul(_Options(kernels.platform() == "cpu", _wide.get(), kernels.window_parts()), x, kernel_DxF)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(_: _Options, x: Array, kernel_DxF: Array) -> Array:
    return matmul_reference(x, kernel_DxF)


def _forward(_: _Options, x: Array, kernel_DxF: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    cast_DxF = kernel_DxF.astype(x.dtype)
    return x @ cast_DxF, (x, cast_DxF, jnp.zeros((), kernel_DxF.dtype))


def _backward(options: _Options, saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel_DxF, like = saved
    x_RxD, g_RxF = (parts_as_rows(a, options.parts).reshape(-1, a.shape[-1]) for a in (x, g))
    product = partial(jnp.matmul, preferred_element_type=like.dtype if options.wide else x.dtype)
    if x_RxD.shape[1] <= g_RxF.shape[1] or not options.on_cpu:
        dkernel_DxF = product(x_RxD.T, g_RxF)
    else:
        # Without the barrier XLA would fold the outer transpose into the product, giving x^T g.
        dkernel_DxF = lax.optimization_barrier(product(g_RxF.T, x_RxD)).T
    return g @ kernel_DxF.T, dkernel_DxF.astype(like.dtype)


_matmul.defvjp(_forward, _backward)
