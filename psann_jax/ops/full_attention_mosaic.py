"""Attention from every position to all positions as TPU kernels, for windows that fit one tile.

One program computes all heads of a few rows, forward or backward, so that no weights are written to memory. The
backward pass recomputes them. The heads lie side by side in the lanes of a register. A product with one head sets the
lanes of the others to 0, which costs the matrix unit nothing as long as all heads fit in its width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops.full_attention_tile import Tile, score_gradients, weights

MAX_LENGTH = 128
_ROWS = 8  # rows of the batch per program


class Heads(NamedTuple):
    """Sizes of the weights of which dropout numbers the elements.

    Attributes:
      n_heads: of this device.
      all_heads: of all devices.
      rate: of dropout.
    """

    n_heads: int
    all_heads: int
    rate: float


def forward(qkv: tuple[Array, ...], place_4: Array, rate: float, n_heads: int, *, interpret: bool = False) -> Array:
    """Computes the attention of q, k and v, see `psann_jax.ops.full_attention`."""
    heads = Heads(qkv[0].shape[2], n_heads, rate)
    return _call(_row, heads, qkv, 1, place_4, interpret=interpret)[0]


def gradients(
    qkv: tuple[Array, ...], dout: Array, place_4: Array, rate: float, n_heads: int, *, interpret: bool = False
) -> tuple[Array, ...]:
    """Computes the gradients of q, k and v."""
    heads = Heads(qkv[0].shape[2], n_heads, rate)
    return _call(_row_gradients, heads, (*qkv, dout), 3, place_4, interpret=interpret)


def _call(
    compute: Callable[..., tuple[Array, ...]],
    heads: Heads,
    arrays: tuple[Array, ...],
    n_outputs: int,
    place_4: Array,
    *,
    interpret: bool,
) -> tuple[Array, ...]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    B, L, H, K = arrays[0].shape
    block = pl.BlockSpec((_ROWS, L, H * K), lambda b: (b, 0, 0))

    def kernel(place_ref: Any, *refs: Any) -> None:
        first, second, row, head = (place_ref[i] for i in range(4))
        row += (pl.program_id(0) * _ROWS).astype(jnp.uint32)

        def one_row(i: Array, _: None) -> None:
            index = ((row + i.astype(jnp.uint32)) * jnp.uint32(heads.all_heads) + head) * jnp.uint32(L)
            tile = Tile(L, K, heads.rate, (first, second), index)
            results = compute(tile, heads.n_heads, *(ref[i] for ref in refs[: len(arrays)]))
            for ref, result in zip(refs[len(arrays) :], results, strict=True):
                ref[i] = result.astype(ref.dtype)

        lax.fori_loop(0, _ROWS, one_row, None)

    results: list[Array] = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(B, _ROWS),),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)] + [block] * len(arrays),
        out_specs=[block] * n_outputs,
        out_shape=[jax.ShapeDtypeStruct((B, L, H * K), x.dtype) for x in arrays[:n_outputs]],
        interpret=interpret,
        name=f"full_attention{compute.__name__}",
    )(place_4, *(x.reshape(B, L, H * K) for x in arrays))
    return tuple(x.reshape(B, L, H, K) for x in results)


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """Multiplies two matrices, with float32 sums, over an axis of each."""
    return lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=jnp.float32)


def _only(x_LxD: Array, head: int, head_dim: int) -> Array:
    """Sets all lanes to 0 but those of one head."""
    lane = lax.broadcasted_iota(jnp.int32, x_LxD.shape, 1)
    return jnp.where((lane >= head * head_dim) & (lane < (head + 1) * head_dim), x_LxD, jnp.zeros_like(x_LxD))


def _head_tile(tile: Tile, head: int) -> Tile:
    return tile._replace(first_row=tile.first_row + jnp.uint32(head * tile.length))


def _row(tile: Tile, n_heads: int, q: Array, k: Array, v: Array) -> tuple[Array, ...]:
    out = jnp.zeros(q.shape, jnp.float32)
    for head in range(n_heads):
        w, factors = weights(_head_tile(tile, head), _product(_only(q, head, tile.head_dim), k, (1, 1)))
        out += _product((w * factors).astype(v.dtype), _only(v, head, tile.head_dim), (1, 0))
    return (out,)


def _row_gradients(tile: Tile, n_heads: int, q: Array, k: Array, v: Array, dout: Array) -> tuple[Array, ...]:
    dq, dk, dv = (jnp.zeros(q.shape, jnp.float32) for _ in range(3))
    for head in range(n_heads):
        q_head, k_head, dout_head = (_only(x, head, tile.head_dim) for x in (q, k, dout))
        w, factors = weights(_head_tile(tile, head), _product(q_head, k, (1, 1)))
        dv += _product((w * factors).astype(v.dtype), dout_head, (0, 0))
        dscores = score_gradients(tile, w, _product(dout_head, v, (1, 1)) * factors).astype(q.dtype)
        dq += _product(dscores, k_head, (1, 0))
        dk += _product(dscores, q_head, (0, 0))
    return dq, dk, dv
