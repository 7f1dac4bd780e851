"""Causal attention and the choice of its implementation."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from psann_jax.config.checks import ConfigError
from psann_jax.ops import kernels, tiles
from psann_jax.ops.attention_cudnn import cudnn_attention, max_head_dim
from psann_jax.ops.attention_reference import plain_attention, scores, weighted_values
from psann_jax.ops.attention_splash import splash_attention
from psann_jax.ops.attention_tiled import tiled_attention
from psann_jax.ops.attention_triton import triton_attention
from psann_jax.ops.gpu_kinds import architecture
from psann_jax.ops.kernels import Candidate
from psann_jax.ops.tiles import NO_DROPOUT, Dropout

Kernel = Callable[[Array, Array, Array, Array | None], Array]

# Functions of queries, keys, values and segment ids on one device; the compiler cannot partition them.
KERNELS: dict[str, Kernel] = {
    "cudnn": cudnn_attention,
    "cudnn_packed": cudnn_attention,
    "triton": triton_attention,
    "splash": splash_attention,
}
_PLATFORMS = {"cudnn": "NVIDIA GPUs", "triton": "NVIDIA GPUs", "splash": "TPUs"}
_MODULES = {
    "cudnn_packed": "jax._src.cudnn.fused_attention_stablehlo",
    "triton": "jax.experimental.pallas.triton",
    "splash": "jax.experimental.pallas.ops.tpu.splash_attention",
}
# What model.attention can be, and the implementations that it stands for.
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "xla": ("xla",),
    "cudnn": ("cudnn", "cudnn_packed"),
    "triton": ("triton",),
    "splash": ("splash",),
    "plain": ("plain",),
}


class AttentionCase(NamedTuple):
    """What decides which implementations can compute an attention.

    Attributes:
      dtype: type of queries, keys and values.
      head_dim: features per head.
      has_segment_ids: whether packed documents are masked.
      has_alibi: whether ALiBi is added to the scores.
      dropout: dropout rate of the attention weights.
      shard_size: elements of the queries on one device; 0 if it is not known.
      uneven: why the mesh cannot split the arrays into equal parts; empty if it can.
    """

    dtype: Any
    head_dim: int
    has_segment_ids: bool = False
    has_alibi: bool = False
    dropout: float = 0.0
    shard_size: int = 0
    uneven: str = ""


def alibi_slopes(n_heads: int) -> Array:
    """Returns the slopes of ALiBi, (n_heads,) float32.

    For a power of two n: 2^(-8/n), 2^(-16/n), ..., 2^-8. For other numbers: the slopes of the power of two below,
    followed by every second slope of the power of two above, as in BLOOM.

    Source: Press et al., "Train Short, Test Long", 2022.
    """
    below = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(n_heads - below)]
    return jnp.array(slopes, jnp.float32)


class _Limit(NamedTuple):
    """A reason against an implementation, and whether it applies."""

    reason: str
    applies: bool


def candidates(case: AttentionCase) -> tuple[Candidate, ...]:
    """Returns the implementations by preference, with the reasons against them on the devices of the mesh.

    The last one, tiles of scores in plain JAX, computes everything everywhere.
    """
    xla = Candidate("xla", is_kernel=False)
    match kernels.platform():
        case "gpu":
            return *_on_gpu(case, architecture(kernels.device_kind())), xla
        case "tpu":
            return _candidate("splash", *_splash_limits(case)), xla
    return (xla,)


def _candidate(name: str, *limits: _Limit) -> Candidate:
    """Returns the candidate with the first limit that applies; the last is whether this JAX has its module."""
    reason = next((limit.reason for limit in limits if limit.applies), "")
    module = _MODULES.get(name)
    if not reason and module is not None and not _exists(module):
        reason = f"needs {module}, which this version of JAX does not have"
    return Candidate(name, reason)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _on_gpu(case: AttentionCase, found: str) -> tuple[Candidate, Candidate]:
    """Returns the candidates on a GPU of an architecture of `gpu_kinds.architecture`."""
    generation = _Limit("needs an NVIDIA GPU of the generation of Ampere or newer", not found)
    cudnn = (generation, _types(case, jnp.bfloat16, jnp.float16), _heads(case, max_head_dim(found)), *_options(case))
    offsets = _Limit("addresses fewer than 2^31 numbers per device", case.shard_size >= 2**31)
    hopper = found in ("hopper", "blackwell")
    packed = (
        *cudnn,
        _Limit("needs a GPU of the generation of Hopper or newer to mask packed documents", not hopper),
        offsets,
    )
    first = _candidate("cudnn_packed", *packed) if case.has_segment_ids else _candidate("cudnn", *cudnn)
    types = _types(case, jnp.bfloat16, jnp.float16, jnp.float32)
    size = _Limit(f"needs a head size of at most 256, not {case.head_dim}", case.head_dim > 256)
    return first, _candidate("triton", generation, types, size, offsets, *_options(case))


def _splash_limits(case: AttentionCase) -> tuple[_Limit, ...]:
    return (_types(case, jnp.bfloat16, jnp.float32), _heads(case, 256), *_options(case))


def _types(case: AttentionCase, *types: Any) -> _Limit:
    names = [jnp.dtype(t).name for t in types]
    known = f"{', '.join(names[:-1])} or {names[-1]}"
    return _Limit(f"computes in {known}, not in {jnp.dtype(case.dtype).name}", jnp.dtype(case.dtype).name not in names)


def _heads(case: AttentionCase, limit: int) -> _Limit:
    reason = f"needs a head size that is a multiple of 8 up to {limit}, not {case.head_dim}"
    return _Limit(reason, case.head_dim % 8 != 0 or case.head_dim > limit)


def _options(case: AttentionCase) -> tuple[_Limit, ...]:
    return (
        _Limit("cannot add ALiBi", case.has_alibi),
        _Limit("cannot drop attention weights", case.dropout > 0),
        _Limit(case.uneven, bool(case.uneven)),
    )


def choose_attention(implementation: str, case: AttentionCase) -> str:
    """Chooses the implementation of `causal_attention` for the devices of the mesh.

    Args:
      implementation: a key of `IMPLEMENTATIONS`; "auto" is the fastest that supports the case.
      case: what it must support.

    Returns:
      A key of `KERNELS`, "xla" (tiles of scores) or "plain".

    Raises:
      ConfigError: The requested implementation is unknown or does not support the case.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from {known}")
    if implementation == "auto":
        return kernels.choose("attention", *candidates(case))
    if implementation in ("xla", "plain"):
        return kernels.choose("attention", Candidate(implementation, is_kernel=False))
    names, platform = IMPLEMENTATIONS[implementation], kernels.platform()
    elsewhere = Candidate(names[0], f"runs on {_PLATFORMS[implementation]}, not on {platform}")
    chosen = next((c for c in candidates(case) if c.name in names), elsewhere)
    if chosen.reason:
        raise ConfigError(f"model.attention: {implementation} {chosen.reason}; use auto or xla")
    # What the config demands is not passed over, even where kernels are off.
    return kernels.choose("attention", chosen._replace(is_kernel=False))


def describe_attention(implementation: str, case: AttentionCase) -> str:
    """Returns the name of the implementation, and on an accelerator why not a kernel: "xla (cudnn ...)"."""
    chosen = choose_attention(implementation, case)
    if chosen in KERNELS or implementation != "auto" or kernels.platform() == "cpu":
        return chosen
    off = "is turned off or failed its check"
    reasons = (f"{c.name} {c.reason or off}" for c in candidates(case) if c.is_kernel)
    return f"{chosen} ({'; '.join(reasons)})"


def causal_attention(
    q_BxLxHxK: Array,
    k_BxLxHxK: Array,
    v_BxLxHxK: Array,
    *,
    segment_ids_BxL: Array | None = None,
    alibi_slopes_H: Array | None = None,
    dropout: Dropout = NO_DROPOUT,
    implementation: str = "auto",
) -> Array:
    """Computes softmax(q k^T / sqrt(K) + bias) v; a query sees the keys up to its own position, in its own segment.

    Scores and softmax are float32 (float64 for float64 inputs); the matmuls read the input type.

    Args:
      q_BxLxHxK: queries.
      k_BxLxHxK: keys, of the same type.
      v_BxLxHxK: values, of the same type.
      segment_ids_BxL: document of each token; None: one document per row. Padding counts as a document.
      alibi_slopes_H: adds -slope * (query index - key index) to the scores. A constant: it gets no gradient.
      dropout: of the attention weights. "xla" and "plain" drop the same weights for the same key.
      implementation: see `choose_attention`.

    Returns:
      (B, L, H, K) in the type of the inputs.

    Raises:
      ConfigError: the implementation is unknown or does not support the options.
    """
    rate = dropout.rate if dropout.key is not None else 0.0
    has_segment_ids, has_alibi = segment_ids_BxL is not None, alibi_slopes_H is not None
    case = AttentionCase(
        q_BxLxHxK.dtype, q_BxLxHxK.shape[-1], has_segment_ids, has_alibi, rate, shard_size=q_BxLxHxK.size
    )
    chosen = choose_attention(implementation, case)
    if chosen in KERNELS:
        return KERNELS[chosen](q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL)
    key = dropout.key if dropout.rate else None
    attend = plain_attention if chosen == "plain" else tiled_attention
    return attend(dropout.rate, q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, segment_ids_BxL, alibi_slopes_H, key)


def cached_attention(
    q_BxLxHxK: Array,
    k_BxSxHxK: Array,
    v_BxSxHxK: Array,
    query_index_BxL: Array,
    *,
    alibi_slopes_H: Array | None = None,
) -> Array:
    """Attends to the slots of a cache, for decoding; a query sees the slots up to its own.

    Args:
      q_BxLxHxK: queries.
      k_BxSxHxK: keys of all S slots, written or not.
      v_BxSxHxK: values of all slots; finite in every slot.
      query_index_BxL: slot of each query.
      alibi_slopes_H: adds -slope * (query index - slot) to the scores.

    Returns:
      (B, L, H, K) in the type of the queries.
    """
    lag_BxLxS = query_index_BxL[:, :, None] - jnp.arange(k_BxSxHxK.shape[1])[None, None]
    scores_BxHxLxS = scores(q_BxLxHxK, k_BxSxHxK)
    if alibi_slopes_H is not None:
        scores_BxHxLxS -= alibi_slopes_H[None, :, None, None] * lag_BxLxS[:, None]
    p_BxHxLxS = jax.nn.softmax(jnp.where(lag_BxLxS[:, None] >= 0, scores_BxHxLxS, tiles.MASK_VALUE))
    return weighted_values(p_BxHxLxS, v_BxSxHxK).astype(q_BxLxHxK.dtype)
