"""Causal attention on TPUs by JAX's splash attention, a Pallas kernel."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import kernels
from psann_jax.ops.attention_documents import document_numbers
from psann_jax.ops.attention_reference import EXAMPLE_OPTIONS, exact_attention

_LANES = 128  # blocks and windows are multiples of it
_LARGEST_BLOCK = 512
# The fused backward kernel stores one gradient of the queries per block of keys before it adds them.
_FUSED_BLOCKS = 4


def blocks(length: int) -> tuple[int, int]:
    """Returns the number of blocks along a window and the length of each, a multiple of 128, at most 512."""
    n = math.ceil(length / _LARGEST_BLOCK)
    return n, _LANES * math.ceil(length / n / _LANES)


def splash_attention(
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    segment_ids_BxL: Array | None,
    *,
    window: int = 0,
    interpret: bool = False,
) -> Array:
    """Computes `causal_attention` in bf16 or float32 on a TPU.

    Matmuls of float32 have the default precision of JAX, as elsewhere in the project.

    Args:
      q_BxLxHxK: queries.
      k_BxLxGxK: keys.
      v_BxLxGxK: values.
      segment_ids_BxL: document of each token, see `attention_documents`; None: one document per row.
      window: tokens that a query sees; 0: all.
      interpret: runs the kernel in Python, for tests on a CPU.
    """
    L, H, K = q_BxLxHxK.shape[1:]
    n, block = blocks(L)
    padding = n * block - L
    # Rounds once, from float32. The kernel has no scale of its own.
    q_BxLxHxK = (q_BxLxHxK.astype(jnp.float32) / math.sqrt(K)).astype(q_BxLxHxK.dtype)

    def heads_first(x_BxLxHxK: Array) -> Array:
        return jnp.pad(x_BxLxHxK, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    arrays = [heads_first(x) for x in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)]
    if segment_ids_BxL is not None:
        # The padding is a document, so that its queries do not read those of others; nothing reads it in any case.
        numbers_BxL = document_numbers(segment_ids_BxL)
        arrays.append(jnp.pad(numbers_BxL, ((0, 0), (0, padding)), constant_values=-1))
    kernel = _kernel(n, block, [_mask(n * block, window)] * H, interpret)
    out_BxHxLxK = jax.vmap(partial(_row, kernel))(*arrays)
    return out_BxHxLxK.swapaxes(1, 2)[:, :L].astype(v_BxLxGxK.dtype)


def _mask(length: int, window: int) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    if window:
        return splash_attention_mask.LocalMask((length, length), (window - 1, 0), offset=0)
    return splash_attention_mask.CausalMask((length, length))


def _kernel(n: int, block: int, heads: list[Any], interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    fused = n <= _FUSED_BLOCKS
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    mask = splash_attention_mask.MultiHeadMask(heads)
    return splash_attention_kernel.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def _row(kernel: Any, q_HxLxK: Array, k_GxLxK: Array, v_GxLxK: Array, numbers_L: Array | None = None) -> Array:
    """Attends within one row of the batch."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    segment_ids = None
    if numbers_L is not None:
        segment_ids = splash_attention_kernel.SegmentIds(q=numbers_L, kv=numbers_L)
    out: Array = kernel(q_HxLxK, k_GxLxK, v_GxLxK, segment_ids=segment_ids)
    return out


def _example(group: int, window: int) -> kernels.Example:
    def inputs(key: Array) -> tuple[Array, ...]:
        q, k, v = jax.random.normal(key, (3, 2, 300, 2 * group, 64), jnp.bfloat16)
        index = jnp.arange(300)
        segment_ids_BxL = jnp.stack([index // 70 + 1, jnp.where(index < 200, index // 128 + 1, 0)])
        return q, k[:, :, :2], v[:, :, :2], segment_ids_BxL

    kernel, reference = (partial(attend, window=window) for attend in (splash_attention, exact_attention))
    return kernels.Example(kernel, reference, inputs, 0.03)


for _suffix, _options in EXAMPLE_OPTIONS.items():
    kernels.example(f"attention.splash{_suffix}")(partial(_example, *_options))
