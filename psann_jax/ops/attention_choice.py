"""The choice of an implementation of causal attention."""

import importlib.util
from typing import Any, NamedTuple

import jax.numpy as jnp

from psann_jax.config.checks import ConfigError
from psann_jax.ops import kernels
from psann_jax.ops.attention_cudnn import max_head_dim
from psann_jax.ops.attention_reference import Variant
from psann_jax.ops.attention_splash import is_long, part_block
from psann_jax.ops.gpu_kinds import OLD_GPU, architecture
from psann_jax.ops.kernels import Candidate

_PLATFORMS = {"cudnn": "NVIDIA GPUs", "triton": "NVIDIA GPUs", "splash": "TPUs"}
_TRITON_FIRST = 64, 1024  # largest head size and window for which Triton is the first choice for packed documents
_OFF = "is turned off or failed its check"
_MODULES = {
    "cudnn_packed": "jax._src.cudnn.fused_attention_stablehlo",
    "triton": "jax.experimental.pallas.triton",
    "splash": "jax.experimental.pallas.ops.tpu.splash_attention",
    "splash_gathered": "jax.experimental.pallas.ops.tpu.splash_attention",
}
# What model.attention can be, and the implementations that it stands for.
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "xla": ("xla",),
    "cudnn": ("cudnn", "cudnn_packed"),
    "triton": ("triton",),
    "splash": ("splash", "splash_gathered"),
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
      group: heads of queries per head of keys and values.
      window: tokens that a query sees, itself included; 0: all.
      length: tokens of a window; 0 if it is not known.
      context: devices that a window is divided over.
    """

    dtype: Any
    head_dim: int
    has_segment_ids: bool = False
    has_alibi: bool = False
    dropout: float = 0.0
    shard_size: int = 0
    uneven: str = ""
    group: int = 1
    window: int = 0
    length: int = 0
    context: int = 1

    @property
    def tiles(self) -> str:
        """Name of the implementation by tiles of scores: "ring" if devices exchange parts of a window, else "xla"."""
        return "ring" if self.context > 1 and not self.uneven else "xla"

    def variant(self, kernel: str) -> Variant:
        """Returns which code of a kernel the case runs."""
        long = kernel.startswith("splash") and is_long(self.length, self.context)
        has_window, has_ids = self.window > 0, self.has_segment_ids
        return Variant(jnp.dtype(self.dtype).name, self.head_dim, self.group, has_window, self.dropout, has_ids, long)


class _Limit(NamedTuple):
    """A reason against an implementation, and whether it applies."""

    reason: str
    applies: bool


def candidates(case: AttentionCase) -> tuple[Candidate, ...]:
    """Returns the implementations by preference, with the reasons against them on the devices of the mesh.

    The last one, tiles of scores in plain JAX, computes everything everywhere.
    """
    xla = Candidate(case.tiles, is_kernel=False)
    match kernels.platform():
        case "gpu":
            return *_on_gpu(case, architecture(kernels.device_kind())), xla
        case "tpu":
            return _candidate(case, "splash" if case.context == 1 else "splash_gathered", *_splash_limits(case)), xla
    return (xla,)


def _candidate(case: AttentionCase, name: str, *limits: _Limit) -> Candidate:
    """Returns the candidate with the first limit that applies; the last is whether this JAX has its module."""
    reason = next((limit.reason for limit in limits if limit.applies), "")
    module = _MODULES.get(name)
    if not reason and module is not None and not _exists(module):
        reason = f"needs {module}, which this version of JAX does not have"
    return Candidate(name, reason, variant=case.variant(name))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _on_gpu(case: AttentionCase, found: str) -> tuple[Candidate, Candidate]:
    """Returns the candidates by preference on a GPU of an architecture of `gpu_kinds.architecture`."""
    generation = _Limit(OLD_GPU, not found)
    cudnn = (generation, _types(case, jnp.bfloat16, jnp.float16), _heads(case, max_head_dim(found)), *_options(case))
    offsets = _Limit("addresses fewer than 2^31 numbers per device", case.shard_size >= 2**31)
    hopper = found in ("hopper", "blackwell")
    packed = (
        *cudnn,
        _Limit("needs a GPU of the generation of Hopper or newer to mask packed documents", not hopper),
        offsets,
    )
    types = _types(case, jnp.bfloat16, jnp.float16, jnp.float32)
    size = _Limit(f"needs a head size of at most 256, not {case.head_dim}", case.head_dim > 256)
    triton = _candidate(case, "triton", generation, types, size, offsets, *_options(case, drops=True))
    if not case.has_segment_ids:
        return _candidate(case, "cudnn", *cudnn), triton
    library = _candidate(case, "cudnn_packed", *packed)
    # For packed documents, cuDNN starts thread blocks for as many as a row may have, and those that a row does not have
    # took most of the time: 5.1 ms of a step of proxy_13m, where Triton took 1.1 (H200, 32 windows of 1,024 tokens,
    # documents of 256 on average). Longer windows are left to cuDNN, whose products should be faster; not measured.
    triton_is_first = case.head_dim <= _TRITON_FIRST[0] and case.length <= _TRITON_FIRST[1]
    return (triton, library) if triton_is_first else (library, triton)


def _splash_limits(case: AttentionCase) -> tuple[_Limit, ...]:
    parts = _Limit(
        f"needs parts of a window that are multiples of 128 tokens (data.max_length={case.length}, "
        f"mesh.context={case.context})",
        case.context > 1 and not part_block(case.length // case.context),
    )
    return (_types(case, jnp.bfloat16, jnp.float32), _heads(case, 256), parts, *_options(case, gathers=True))


def _types(case: AttentionCase, *types: Any) -> _Limit:
    names = [jnp.dtype(t).name for t in types]
    known = f"{', '.join(names[:-1])} or {names[-1]}"
    return _Limit(f"computes in {known}, not in {jnp.dtype(case.dtype).name}", jnp.dtype(case.dtype).name not in names)


def _heads(case: AttentionCase, limit: int) -> _Limit:
    reason = f"needs a head size that is a multiple of 8 up to {limit}, not {case.head_dim}"
    return _Limit(reason, case.head_dim % 8 != 0 or case.head_dim > limit)


def _options(case: AttentionCase, *, drops: bool = False, gathers: bool = False) -> tuple[_Limit, ...]:
    return (
        _Limit("cannot add ALiBi", case.has_alibi),
        _Limit("cannot drop attention weights", case.dropout > 0 and not drops),
        _Limit(f"cannot attend to parts of a window (mesh.context={case.context})", case.context > 1 and not gathers),
        _Limit(case.uneven, bool(case.uneven)),
    )


def choose_attention(implementation: str, case: AttentionCase) -> str:
    """Chooses the implementation of `causal_attention` for the devices of the mesh.

    Args:
      implementation: a key of `IMPLEMENTATIONS`; "auto" is the fastest that supports the case.
      case: what it must support.

    Returns:
      A key of `attention.KERNELS`, "xla" (tiles of scores), "ring" (the same for parts of a window), "splash_gathered"
      (for parts of a window, with all keys and values on each device) or "plain".

    Raises:
      ConfigError: The requested implementation is unknown or does not support the case.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ConfigError(f"model.attention: {implementation!r} is unknown, choose from {known}")
    if implementation == "auto":
        return kernels.choose("attention", *candidates(case))
    if implementation in ("xla", "plain"):
        name = case.tiles if implementation == "xla" else implementation
        return kernels.choose("attention", Candidate(name, is_kernel=False))
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
    reasons = {c.name: c.reason or _OFF for c in candidates(case) if c.is_kernel}
    if chosen in reasons or implementation != "auto" or kernels.platform() == "cpu":
        return chosen
    return f"{chosen} ({'; '.join(f'{name} {reason}' for name, reason in reasons.items())})"
