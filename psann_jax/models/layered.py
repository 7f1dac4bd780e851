"""Base class of all networks: a stack of equal blocks, rematerialisation, and the interface of a model."""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config.checks import require
from psann_jax.nn.layers import indexed, unstacked
from psann_jax.ops import kernels
from psann_jax.ops.cross_entropy import soft_cap

Carry = TypeVar("Carry")
Step = Callable[[Any, Any, Any], Any]


class Layered(nnx.Module):
    """Blocks whose parameters are stacked along a leading layer axis.

    They are stacked even if the blocks run unrolled, so that neither `scan_layers` nor rematerialisation changes a
    parameter or a value.

    Attributes:
      config: the `model` section, which a subclass sets before its blocks are made.
      REMATS: the values of `train.remat` that the class supports.
      UNROLLED_ON_TPU: the most layers that are unrolled on TPUs by default; more would take long to compile.
      n_layers: number of blocks.
      dtype: of activations and of the cache.
      remat: what the backward pass recomputes: none, dots (keeps matrix products), block (keeps the input of each
        block) or full (keeps the input of every ~sqrt(n_layers)-th block).
      scan_layers: whether one compiled block is scanned over all layers; False unrolls. None unrolls on GPUs, and few
        layers on TPUs: a scan copies what it keeps for the backward pass, half of a step's memory traffic on a GPU.
      sequence: whether the residual stream is sharded along the window between layers, see `Context.split`.
      blocks: the stack.
      logit_softcap: c > 0 bounds the logits to +-c, see `psann_jax.ops.cross_entropy.soft_cap`; 0: no bound.
    """

    REMATS: ClassVar[tuple[str, ...]] = ("none", "dots", "block", "full")
    UNROLLED_ON_TPU: ClassVar[int] = 8
    config: Any
    logit_softcap: float = 0.0

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        n_layers: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        scan_layers: bool | None = None,
        sequence: bool = False,
        rngs: nnx.Rngs,
    ):
        """Creates the blocks, each from its own random keys; for the arguments see the attributes.

        Raises:
          ConfigError: the class does not support `remat`.
        """
        known = Layered.REMATS
        require(remat in known, "train.remat", f"is {remat!r}, must be one of {', '.join(known)} with this base")
        self.n_layers, self.dtype, self.remat, self.scan_layers = n_layers, jnp.dtype(dtype), remat, scan_layers
        self.sequence = sequence
        make = nnx.split_rngs(splits=n_layers)(nnx.vmap(in_axes=0, out_axes=0)(make_block))
        self.blocks: Any = make(rngs)

    def run_blocks(self, carry: Carry, step: Step) -> Carry:
        """Applies step(block, carry, index) for all blocks, with rematerialisation; for use without a cache."""
        graphdef, stacked = nnx.split(self.blocks)
        scan = self.scans()

        def body(carry: Any, layer_and_index: tuple[Any, Any]) -> tuple[Any, None]:
            layer, index = layer_and_index
            return step(nnx.merge(graphdef, layer), carry, index), None

        def run(carry: Any, layers_and_indices: tuple[Any, jax.Array]) -> tuple[Any, None]:
            if scan:
                return jax.lax.scan(one, carry, layers_and_indices)
            leaves, structure = jax.tree.flatten(layers_and_indices)
            # Compiled for one TPU, the gradient of `unstacked` keeps activations of all layers until the end (8 layers,
            # train.remat=block: 0.87 GiB, instead of 0.27). With data parallelism it does not.
            layers_of = indexed if kernels.platform() == "tpu" and kernels.replicas() == 1 else unstacked
            for parts in zip(*map(layers_of, leaves), strict=True):
                carry, _ = one(carry, jax.tree.unflatten(structure, parts))
            return carry, None

        one = _rematerialised(body, self.remat, scanned=scan)
        everything = (stacked, jnp.arange(self.n_layers))
        with kernels.using(self.config.kernels):
            if self.remat == "full":
                size = _group_size(self.n_layers)
                groups = jax.tree.map(lambda p: p.reshape(-1, size, *p.shape[1:]), everything)
                return jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, groups)[0]
            return run(carry, everything)[0]

    def scans(self) -> bool:
        """Returns whether the blocks run as a loop on the devices of the current mesh, for use without a cache."""
        if self.scan_layers is not None:
            return self.scan_layers
        unrolled = {"gpu": self.n_layers, "tpu": self.UNROLLED_ON_TPU}.get(kernels.platform(), 0)
        return self.n_layers > unrolled

    def block_list(self) -> list[Any]:
        """Returns the blocks as a list, each with its own arrays."""
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        graphdef, stacked = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked)) for i in range(self.n_layers)]

    def unstack(self) -> None:
        """Splits the stack into separate arrays per block; `hidden` then needs a cache.

        Decoding reads all weights for each token, and would copy each slice of a stack every time.
        """
        self.blocks = nnx.List(self.block_list())

    @abc.abstractmethod
    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns the (D, V) kernel that maps hidden states to logits, before a softcap, and its bias (V,) or None."""

    def logits(self, x: jax.Array) -> jax.Array:
        """Computes float32 logits (..., V) of hidden states (..., D); for a few positions, not for training."""
        kernel, bias = self.head_kernel()
        wide = jnp.promote_types(self.dtype, jnp.float32)
        y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide)
        return soft_cap(y if bias is None else y + bias.astype(wide), self.logit_softcap)


def _rematerialised(body: Any, remat: str, *, scanned: bool) -> Any:
    if remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # Without a loop around it, the compiler would merge the recomputation with the forward pass.
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=not scanned)(body)


def _group_size(n_layers: int) -> int:
    """The largest divisor of n_layers up to its square root."""
    return max(d for d in range(1, math.isqrt(n_layers) + 1) if n_layers % d == 0)
