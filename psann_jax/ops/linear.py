"""A matrix product with a weight gradient that is fast on CPUs."""

import jax
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.window_parts import parts_as_rows


def matmul_reference(x: Array, kernel_DxF: Array) -> Array:
    """Reference for `matmul`, differentiated by JAX."""
    return x @ kernel_DxF


@jax.custom_vjp
def matmul(x: Array, kernel_DxF: Array) -> Array:
    """Multiplies x by a kernel, with a kernel gradient in the operand order that is fastest on CPUs.

    The gradient is the product a^T b over R rows. It is fastest when a is the narrower operand and neither is
    transposed in memory. JAX's rule always puts the gradient of the output on the left; XLA then copies one operand,
    which can take three times as long as the product itself.

    Args:
      x: (..., D).
      kernel_DxF: kernel, of the same type as x.

    Returns:
      (..., F) in the type of x.
    """
    return matmul_reference(x, kernel_DxF)


def _forward(x: Array, kernel_DxF: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul_reference(x, kernel_DxF), (x, kernel_DxF)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel_DxF = saved
    parts = kernels.window_parts()
    x_RxD, g_RxF = (parts_as_rows(a, parts).reshape(-1, a.shape[-1]) for a in (x, g))
    if x_RxD.shape[1] <= g_RxF.shape[1]:
        dkernel_DxF = x_RxD.T @ g_RxF
    else:
        # Without the barrier XLA would fold the outer transpose into the product, giving x^T g.
        dkernel_DxF = lax.optimization_barrier(g_RxF.T @ x_RxD).T
    return g @ kernel_DxF.T, dkernel_DxF


matmul.defvjp(_forward, _backward)
