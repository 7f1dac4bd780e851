"""Attention from every position to all positions, for short windows such as the 81 cells of a Sudoku grid."""

import math
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.ops import full_attention_mosaic, full_attention_triton, kernels
from psann_jax.ops.dropout import dropout as drop
from psann_jax.ops.dropout import random_words
from psann_jax.ops.gpu_kinds import no_triton
from psann_jax.ops.tiles import NO_DROPOUT, Dropout

KERNELS: dict[str, ModuleType] = {"triton": full_attention_triton, "mosaic": full_attention_mosaic}
_HEAD_DIMS = {"triton": (16, 32, 64, 128), "mosaic": (8, 16, 32, 64, 128)}


class Part(NamedTuple):
    """Which part of all rows and heads an array holds, so that dropout draws the mask of the whole.

    Attributes:
      row: the first row.
      head: the first head.
      n_heads: the number of all heads; 0: as many as the array has.
    """

    row: Array | int = 0
    head: Array | int = 0
    n_heads: int = 0


WHOLE = Part()


def choose_full_attention(
    dtype: Any, length: int, head_dim: int, *, dropout_rate: float = 0.0, uneven: str = ""
) -> str:
    """Chooses the implementation of `full_attention`, by the devices of the current mesh.

    Args:
      dtype: of queries, keys and values.
      length: L.
      head_dim: K.
      dropout_rate: of the attention weights.
      uneven: why the mesh cannot split the arrays into equal parts; empty if it can.

    Returns:
      "triton" or "mosaic", kernels for GPUs and TPUs that keep the weights out of memory, which the compiler cannot
      partition over devices; or "plain".
    """
    platform = kernels.platform()

    def reason(name: str, wanted: str) -> str:
        if platform != wanted:
            return f"for {wanted.upper()}s only"
        if dtype not in (jnp.bfloat16, jnp.float16)[: 1 if wanted == "tpu" else 2]:
            return f"not for {jnp.dtype(dtype).name}"
        if length > KERNELS[name].MAX_LENGTH:
            return f"windows are longer than {KERNELS[name].MAX_LENGTH}"
        if head_dim not in _HEAD_DIMS[name]:
            return f"heads have {head_dim} features"
        return uneven or (no_triton(kernels.device_kind()) if wanted == "gpu" else "")

    variant = jnp.dtype(dtype).name, head_dim, dropout_rate
    return kernels.choose(
        "full_attention",
        kernels.Candidate("triton", reason("triton", "gpu"), variant=variant),
        kernels.Candidate("mosaic", reason("mosaic", "tpu"), variant=variant),
        kernels.Candidate("plain", is_kernel=False),
    )


def attention_weights(q_BxLxHxK: Array, k_BxLxHxK: Array) -> Array:
    """Returns softmax(q k^T / sqrt(K)), (B, H, L queries, L keys), in float32 or wider."""
    wide = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    scaled = q_BxLxHxK / math.sqrt(q_BxLxHxK.shape[-1])
    return jax.nn.softmax(jnp.einsum("blhk,bmhk->bhlm", scaled, k_BxLxHxK, preferred_element_type=wide))


def full_attention(
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    *,
    dropout: Dropout = NO_DROPOUT,
    implementation: str | None = None,
    part: Part = WHOLE,
) -> Array:
    """Computes softmax(q k^T / sqrt(K)) v over all positions.

    Args:
      q_BxLxHxK: queries.
      k_BxLxHxK: keys.
      v_BxLxHxK: values.
      dropout: of the attention weights.
      implementation: from `choose_full_attention`, which is called if this is None.
      part: what the arrays hold; kernels only.

    Returns:
      (B, L, H, K) in the type of the values.
    """
    _, length, n_heads, head_dim = q_BxLxHxK.shape
    rate = dropout.rate if dropout.key is not None else 0.0
    chosen = implementation or choose_full_attention(q_BxLxHxK.dtype, length, head_dim, dropout_rate=rate)
    if chosen == "plain":
        weights = attention_weights(q_BxLxHxK, k_BxLxHxK).astype(v_BxLxHxK.dtype)
        return jnp.einsum("bhlm,bmhk->blhk", drop(weights, dropout.rate, dropout.key), v_BxLxHxK)
    zero = jnp.zeros((), jnp.uint32)
    words = (zero, zero) if dropout.key is None else random_words(dropout.key)
    place_4 = jnp.stack([*words, *(jnp.asarray(first, jnp.uint32) for first in (part.row, part.head))])
    static = (chosen, rate, part.n_heads or n_heads)
    return _by_kernel(static, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, place_4)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(static: tuple[str, float, int], q: Array, k: Array, v: Array, place_4: Array) -> Array:
    kernel, rate, n_heads = static
    out: Array = KERNELS[kernel].forward((q, k, v), place_4, rate, n_heads)
    return out


def _forward(static: tuple[str, float, int], *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return _by_kernel(static, *args), args


def _backward(static: tuple[str, float, int], saved: tuple[Array, ...], dout: Array) -> tuple[Array | None, ...]:
    kernel, rate, n_heads = static
    *qkv, place_4 = saved
    return *KERNELS[kernel].gradients(tuple(qkv), dout, place_4, rate, n_heads), None


_by_kernel.defvjp(_forward, _backward)


def _example(kernel: str, dtype: str, head_dim: int, dropout_rate: float) -> kernels.Example:
    def inputs(key: Array) -> tuple[Array, ...]:
        return *jax.random.normal(key, (3, 5, 81, 4, head_dim), jnp.dtype(dtype)), jax.random.key_data(key)

    def f(implementation: str, q: Array, k: Array, v: Array, words: Array) -> Array:
        dropout = Dropout(jax.random.wrap_key_data(words), dropout_rate)
        return full_attention(q, k, v, dropout=dropout, implementation=implementation)

    return kernels.Example(partial(f, kernel), partial(f, "plain"), inputs, 0.03)


for _name in KERNELS:
    kernels.example(f"full_attention.{_name}")(partial(_example, _name))
