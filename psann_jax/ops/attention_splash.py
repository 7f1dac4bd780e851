"""Causal attention on TPUs by JAX's splash attention, a Pallas kernel."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from psann_jax.ops import kernels
from psann_jax.ops.attention_documents import document_numbers
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.kernels import CONTEXT_AXIS, window_parts
from psann_jax.ops.tiles import Dropout

_LANES = 128  # blocks and windows are multiples of it
_LARGEST_BLOCK = 512
# The fused backward kernel stores one gradient of the queries per block of keys before it adds them.
_FUSED_BLOCKS = 4
_GATHERED = "gathered_keys_and_values"


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
    L, H = q_BxLxHxK.shape[1:3]
    n, block = blocks(L)
    padding = n * block - L

    def heads_first(x_BxLxHxK: Array) -> Array:
        return jnp.pad(x_BxLxHxK, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    arrays = [heads_first(x) for x in (_scaled(q_BxLxHxK), k_BxLxGxK, v_BxLxGxK)]
    if segment_ids_BxL is not None:
        # The padding is a document, so that its queries do not read those of others; nothing reads it in any case.
        numbers_BxL = document_numbers(segment_ids_BxL)
        arrays += [jnp.pad(numbers_BxL, ((0, 0), (0, padding)), constant_values=-1)] * 2
    kernel = _kernel(n, block, [_mask(n * block, window)] * H, interpret)
    out_BxHxLxK = jax.vmap(partial(_row, kernel))(*arrays)
    return out_BxHxLxK.swapaxes(1, 2)[:, :L].astype(v_BxLxGxK.dtype)


def _scaled(q_BxLxHxK: Array) -> Array:
    # Rounds once, from float32. The kernel has no scale of its own.
    return (q_BxLxHxK.astype(jnp.float32) / math.sqrt(q_BxLxHxK.shape[-1])).astype(q_BxLxHxK.dtype)


def part_block(length: int) -> int:
    """Returns the length of the blocks of a part of a window, whose length they divide; 0 if there is none."""
    return next((n * _LANES for n in range(_LARGEST_BLOCK // _LANES, 0, -1) if length % (n * _LANES) == 0), 0)


def is_long(length: int, parts: int) -> bool:
    """Returns whether windows have the form of the backward pass that does not store a gradient per block of keys.

    Args:
      length: tokens of a window.
      parts: devices that a window is divided over.
    """
    block = _LARGEST_BLOCK if parts == 1 else part_block(length // parts)
    return block > 0 and math.ceil(length / block) > _FUSED_BLOCKS


def kernel_of_parts(length: int, n_heads: int, *, window: int = 0, interpret: bool = False) -> tuple[Any, Any]:
    """Makes the kernel of `gathered_splash_attention`.

    Args:
      length: tokens of a device's part of a window.
      n_heads: heads of queries of a device.
      window: tokens that a query sees; 0: all.
      interpret: runs the kernel in Python, for tests on a CPU.

    Returns:
      The kernel for all queries, a pytree, and its PartitionSpecs, by which shard_map makes that of each device.
    """
    parts, block = window_parts(), part_block(length)
    heads = [_mask(parts * length, window)] * n_heads
    kernel = _kernel(parts * length // block, block, heads, interpret, parts)
    queries = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(None, CONTEXT_AXIS))
    return kernel, kernel.manual_sharding_spec(queries)


# What a device keeps for the backward pass does not include the keys and values of others; it gathers them again.
@partial(jax.checkpoint, policy=jax.checkpoint_policies.save_anything_except_these_names(_GATHERED))
def gathered_splash_attention(
    kernel: Any, q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, segment_ids_BxL: Array | None
) -> Array:
    """Computes `splash_attention` for a device's part of the windows, with keys and values of the other devices.

    They are gathered, because the kernel has no public way to differentiate its logsumexp, which a ring would need.

    Args:
      kernel: the device's part of a kernel of `kernel_of_parts`.
      q_BxLxHxK: queries of the device's part of the rows, heads and positions, like the others.
      k_BxLxGxK: keys.
      v_BxLxGxK: values.
      segment_ids_BxL: document of each token; None: one document per row.
    """
    gather = partial(lax.all_gather, axis_name=CONTEXT_AXIS, axis=1, tiled=True)
    k_BxGxSxK, v_BxGxSxK = (checkpoint_name(gather(x).swapaxes(1, 2), _GATHERED) for x in (k_BxLxGxK, v_BxLxGxK))
    arrays = [_scaled(q_BxLxHxK).swapaxes(1, 2), k_BxGxSxK, v_BxGxSxK]
    if segment_ids_BxL is not None:
        L = q_BxLxHxK.shape[1]
        numbers_BxS = document_numbers(gather(segment_ids_BxL))
        arrays += [lax.dynamic_slice_in_dim(numbers_BxS, lax.axis_index(CONTEXT_AXIS) * L, L, 1), numbers_BxS]
    out_BxHxLxK = jax.vmap(partial(_row, kernel))(*arrays)
    return out_BxHxLxK.swapaxes(1, 2).astype(v_BxLxGxK.dtype)


def _mask(length: int, window: int) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    if window:
        return splash_attention_mask.LocalMask((length, length), (window - 1, 0), offset=0)
    return splash_attention_mask.CausalMask((length, length))


def _kernel(n: int, block: int, heads: list[Any], interpret: bool, parts: int = 1) -> Any:
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
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret
    )


def _row(kernel: Any, q_HxLxK: Array, k_GxSxK: Array, v_GxSxK: Array, *numbers: Array) -> Array:
    """Attends within one row of the batch; the numbers are those of the documents of queries and keys, if any."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    segment_ids = splash_attention_kernel.SegmentIds(*numbers) if numbers else None
    out: Array = kernel(q_HxLxK, k_GxSxK, v_GxSxK, segment_ids=segment_ids)
    return out


@kernels.example("attention.splash")
@kernels.example("attention.splash_gathered")  # the same kernels, with other lists of blocks
def _example(*variant: Any) -> kernels.Example:
    def attend(q: Array, k: Array, v: Array, ids_BxL: Array | None, _: Dropout, *, window: int) -> Array:
        return splash_attention(q, k, v, ids_BxL, window=window)

    case = Variant(*variant)
    index = jnp.arange(_FUSED_BLOCKS * _LARGEST_BLOCK + 50 if case.is_long else _LARGEST_BLOCK + 50)
    begins = jnp.where(index < 2 * index.size // 3, index // 128 + 1, 0)
    segment_ids_BxL = jnp.stack([index // (index.size // 4) + 1, begins])
    return case.example(attend, segment_ids_BxL, 0.03)
