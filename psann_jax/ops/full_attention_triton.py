"""Attention from every position to all positions as GPU kernels, for windows that fit one tile.

One program computes a head of a row, forward or backward, so that no weights are written to memory. The backward pass
recomputes them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.full_attention_tile import Tile, score_gradients, weights

MAX_LENGTH = 128  # the scores of one tile are kept in the registers of eight warps


def forward(qkv: tuple[Array, ...], place_4: Array, rate: float, n_heads: int, *, interpret: bool = False) -> Array:
    """Computes the attention of q, k and v, see `psann_jax.ops.full_attention`."""
    call = _call(partial(_kernel, rate, n_heads), "full_attention", qkv, 1, interpret=interpret)
    return call(*qkv, place_4)[0]


def gradients(
    qkv: tuple[Array, ...], dout: Array, place_4: Array, rate: float, n_heads: int, *, interpret: bool = False
) -> tuple[Array, ...]:
    """Computes the gradients of q, k and v."""
    call = _call(partial(_gradient_kernel, rate, n_heads), "full_attention_backward", qkv, 3, interpret=interpret)
    return tuple(call(*qkv, dout, place_4))


def _call(kernel: Any, name: str, qkv: tuple[Array, ...], n_outputs: int, *, interpret: bool) -> Any:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    B, _, H, _ = qkv[0].shape
    return pl.pallas_call(
        kernel,
        grid=(B * H,),  # other axes of a grid have at most 65,535 programs
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in qkv[:n_outputs]],
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name=name,
    )


def _row_and_head(n_heads: int) -> tuple[Array, Array]:
    """Returns what this program computes; the heads of a row, which share cache lines, follow each other."""
    from jax.experimental import pallas as pl

    return pl.program_id(0) // n_heads, pl.program_id(0) % n_heads


def _head(ref: Any) -> tuple[Any, Array]:
    """Returns the index of this program's part of an array (B, L, H, K), filled up to a tile, and a mask."""
    from jax.experimental import pallas as pl

    _, L, H, K = ref.shape
    row, head = _row_and_head(H)
    position = jnp.arange(max(16, pl.next_power_of_2(L)))[:, None]
    return (row, position, head, jnp.arange(K)[None]), position < L


def _load(ref: Any) -> Array:
    from jax.experimental.pallas import triton as plgpu

    index, mask = _head(ref)
    return plgpu.load(ref.at[index], mask=mask, other=0.0)


def _store(ref: Any, value: Array) -> None:
    from jax.experimental.pallas import triton as plgpu

    index, mask = _head(ref)
    plgpu.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def _tile(rate: float, n_heads: int, q_ref: Any, place_ref: Any) -> Tile:
    _, L, H, K = q_ref.shape
    first, second, first_row, first_head = (place_ref[i] for i in range(4))
    row, head = (x.astype(jnp.uint32) for x in _row_and_head(H))
    index = (first_row + row) * jnp.uint32(n_heads) + first_head + head
    return Tile(L, K, rate, (first, second), index * jnp.uint32(L))


def _dot(a: Array, b: Array, *, trans_a: bool = False, trans_b: bool = False) -> Array:
    """The float32 product of two blocks, each transposed first if asked for."""
    contracted = (0 if trans_a else 1,), (1 if trans_b else 0,)
    return lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _kernel(rate: float, n_heads: int, *refs: Any) -> None:
    q_ref, k_ref, v_ref, place_ref, out_ref = refs
    q, k, v = (_load(ref) for ref in (q_ref, k_ref, v_ref))
    tile = _tile(rate, n_heads, q_ref, place_ref)
    w, factors = weights(tile, _dot(q, k, trans_b=True))
    _store(out_ref, _dot((w * factors).astype(v.dtype), v))


def _gradient_kernel(rate: float, n_heads: int, *refs: Any) -> None:
    q_ref, k_ref, v_ref, dout_ref, place_ref, dq_ref, dk_ref, dv_ref = refs
    q, k, v, dout = (_load(ref) for ref in (q_ref, k_ref, v_ref, dout_ref))
    tile = _tile(rate, n_heads, q_ref, place_ref)
    w, factors = weights(tile, _dot(q, k, trans_b=True))
    _store(dv_ref, _dot((w * factors).astype(v.dtype), dout, trans_a=True))
    dscores = score_gradients(tile, w, _dot(dout, v, trans_b=True) * factors).astype(q.dtype)
    _store(dq_ref, _dot(dscores, k))
    _store(dk_ref, _dot(dscores, q, trans_a=True))
