"""Causal attention by cuDNN's fused kernels, of whole rows or of packed documents."""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from psann_jax.ops import kernels
from psann_jax.ops.attention_documents import document_numbers, lengths_and_starts
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.tiles import Dropout

# The version that is assumed where no GPU is, to compile programs for those of other machines.
_ASSUMED_CUDNN = 91000


def max_head_dim(architecture: str) -> int:
    """Returns the largest head size of cuDNN's kernels on an architecture of `gpu_kinds.architecture`."""
    return 256 if architecture == "hopper" else 128


def documents_per_pass(length: int) -> int:
    """Returns how many documents of each row the first call of cuDNN processes.

    cuDNN starts thread blocks for this many whole rows, and saves as many rows of float32 statistics, most of them
    never written. So the bound limits time and memory: with 64 documents of windows of 2,048 tokens, three fifths of
    the time of attention went to the kernels that prepare and convert the rows (H200, transformer_350m).
    """
    return max(2, min(length, 32, max(16, length // 64)))


class _Packing(NamedTuple):
    """Static options of a call for packed documents.

    Attributes:
      documents: of each row that a call processes.
      window: tokens that a query sees; 0: all.
    """

    documents: int
    window: int


def cudnn_attention(
    q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, segment_ids_BxL: Array | None, *, window: int = 0
) -> Array:
    """Computes `causal_attention` in bf16 or fp16 by cuDNN, for packed documents on Hopper and newer only.

    Args:
      q_BxLxHxK: queries; K is a multiple of 8.
      k_BxLxGxK: keys.
      v_BxLxGxK: values.
      segment_ids_BxL: document of each token, see `attention_documents`; None: one document per row.
      window: tokens that a query sees; 0: all.
    """
    L = q_BxLxHxK.shape[1]
    window = window if window < L else 0
    # JAX refuses to differentiate windows of odd length. No query sees a token that is added after the last one.
    q, k, v = (jnp.pad(x, ((0, 0), (0, L % 2), (0, 0), (0, 0))) for x in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
    if segment_ids_BxL is None:
        return _whole_rows(window, q, k, v)[:, :L]
    numbers = jnp.pad(document_numbers(segment_ids_BxL), ((0, 0), (0, L % 2)), mode="edge")
    return _packed(_Packing(documents_per_pass(L), window), q, k, v, numbers)[:, :L]


@contextlib.contextmanager
def _without_device(fused: ModuleType) -> Iterator[None]:
    """Context in which JAX's wrapper of cuDNN does not ask the GPU of this process, if it has none.

    The wrapper checks the first local GPU when it is traced. Without one, the program is for devices of another
    machine, and `choose_attention` has checked their kind.
    """
    if any(device.platform in ("gpu", "cuda", "rocm") for device in jax.devices()):
        yield
        return
    assumed = {
        "check_cudnn_version": lambda: _ASSUMED_CUDNN,
        "check_compute_capability": lambda _: True,
        "is_cuda_compute_capability_equal": lambda _: False,
    }
    kept = {name: getattr(fused, name) for name in assumed if hasattr(fused, name)}
    try:
        for name in kept:
            setattr(fused, name, assumed[name])
        yield
    finally:
        for name, function in kept.items():
            setattr(fused, name, function)


# --- whole rows -----------------------------------------------------------------------------------------


def _causal_call(window: int, q: Array, k: Array, v: Array) -> Array:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    local = (window - 1, 0) if window else None
    with _without_device(fused):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local, implementation="cudnn")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole_rows(window: int, q: Array, k: Array, v: Array) -> Array:
    return _causal_call(window, q, k, v)


# JAX's own rules are called here and not by JAX, because they check the device as well.
_whole_rows.defvjp(
    lambda window, q, k, v: jax.vjp(partial(_causal_call, window), q, k, v), lambda window, pull, dout: pull(dout)
)


# --- packed documents -----------------------------------------------------------------------------------


def _packed_call(window: int, layout: tuple[Array, Array], q: Array, k: Array, v: Array) -> Array:
    """Attends within the documents of a layout; the result is not defined for tokens of other documents."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    lengths_BxM, starts_BxM = layout
    offsets_BxM = jnp.pad(starts_BxM, ((0, 0), (0, 1)), constant_values=-1)  # JAX expects one column more
    with _without_device(fused):
        out: Array = fused.dot_product_attention(
            q,
            k,
            v,
            q_seqlen=lengths_BxM,
            kv_seqlen=lengths_BxM,
            q_offsets=offsets_BxM,
            kv_offsets=offsets_BxM,
            scale=1 / math.sqrt(q.shape[-1]),
            mask_type=fused.MaskType.PADDING_CAUSAL,
            sliding_window_length=window or None,
        )
    return out


def _other_documents(n: int, numbers_BxL: Array, run: Any, arrays: tuple[Array, ...], found: Any) -> Any:
    """Processes the documents of each row after the first n, one row and n documents at a time, if there are any.

    Nearly all windows have at most n documents, so the loop has no turn. A loop of the same kernel keeps every window
    exact. Another implementation for the rest would be a second kernel in the program, and the rounding of a window
    would depend on the others. Single rows need little memory, which is reserved even if the loop has no turn.

    Args:
      n: documents per turn.
      numbers_BxL: of the documents.
      run: returns arrays (1, L, ...), given a layout for one row and that row of the arrays.
      arrays: (B, L, ...).
      found: results for the first n documents of each row; not defined for tokens of the others.

    Returns:
      `found` with the results of all documents.
    """
    if numbers_BxL.shape[1] <= n:
        return found
    turns_B = numbers_BxL[:, -1] // n
    ends_B = jnp.cumsum(turns_B)

    def step(carry: Any) -> Any:
        turn, found = carry
        b = jnp.sum(ends_B <= turn)
        row = partial(lax.dynamic_slice_in_dim, start_index=b, slice_size=1)
        numbers_1xL, group = row(numbers_BxL), turn - ends_B[b] + turns_B[b] + 1
        results = run(lengths_and_starts(numbers_1xL, group * n, n), *map(row, arrays))
        mine = (numbers_1xL // n == group)[:, :, None, None]

        def put(old: Array, new: Array) -> Array:
            # A select, not a sum: values of tokens of other documents are not defined.
            return lax.dynamic_update_slice_in_dim(old, jnp.where(mine, new, row(old)), b, axis=0)

        return turn + 1, jax.tree.map(put, found, results)

    return lax.while_loop(lambda carry: carry[0] < ends_B[-1], step, (jnp.int32(0), found))[1]


def _gradients(
    window: int, layout: tuple[Array, Array], q: Array, k: Array, v: Array, dout: Array
) -> tuple[Array, ...]:
    gradients: tuple[Array, ...] = jax.vjp(partial(_packed_call, window, layout), q, k, v)[1](dout)
    return gradients


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _packed(packing: _Packing, q: Array, k: Array, v: Array, numbers_BxL: Array) -> Array:
    n, window = packing
    first = _packed_call(window, lengths_and_starts(numbers_BxL, 0, n), q, k, v)
    out: Array = _other_documents(n, numbers_BxL, partial(_packed_call, window), (q, k, v), first)
    return out


def _packed_forward(packing: _Packing, q: Array, k: Array, v: Array, numbers_BxL: Array) -> tuple[Array, Any]:
    n, window = packing
    first, pull = jax.vjp(partial(_packed_call, window, lengths_and_starts(numbers_BxL, 0, n)), q, k, v)
    out = _other_documents(n, numbers_BxL, partial(_packed_call, window), (q, k, v), first)
    # `pull` reads the tokens of the first documents only, which are equal in both, so one of them need not be saved.
    pull = jax.tree.map(lambda leaf: out if leaf is first else leaf, pull)
    return out, (pull, q, k, v, numbers_BxL)


def _packed_backward(packing: _Packing, saved: Any, dout: Array) -> tuple[Array | None, ...]:
    pull, q, k, v, numbers_BxL = saved
    gradients = partial(_gradients, packing.window)
    return (*_other_documents(packing.documents, numbers_BxL, gradients, (q, k, v, dout), pull(dout)), None)


_packed.defvjp(_packed_forward, _packed_backward)


# --- example for the check on a device ------------------------------------------------------------------


@kernels.example("attention.cudnn")
@kernels.example("attention.cudnn_packed")
def _example(*variant: Any) -> kernels.Example:
    def attend(q: Array, k: Array, v: Array, ids_BxL: Array | None, _: Dropout, *, window: int) -> Array:
        return cudnn_attention(q, k, v, ids_BxL, window=window)

    # The first row has more documents than one pass; the second one document and padding.
    index = jnp.arange(191)
    segment_ids_BxL = jnp.stack([jnp.minimum(index // 4 + 1, 40), (index < 150).astype(index.dtype)])
    return Variant(*variant).example(attend, segment_ids_BxL, 0.03)
