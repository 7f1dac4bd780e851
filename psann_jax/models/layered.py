"""What every network with a stack of equal blocks has: one compiled layer for all, rematerialisation, a cache."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config.checks import require

Cache = dict[str, Any]
Carry = TypeVar("Carry")
Step = Callable[[Any, Any, Any], Any]


class Layered(nnx.Module):
    """Blocks whose parameters are stacked along a leading layer axis.

    They are so whether the stack runs as one scanned layer or unrolled, so that neither this switch nor
    rematerialisation changes a parameter or a value.

    Attributes:
      n_layers: blocks.
      dtype: of activations and of the cache.
      remat: what the backward pass recomputes: none, dots (keeps matrix products), block (keeps the input of every
        block) or full (keeps the input of every ~sqrt(n_layers)-th block).
      scan_layers: one compiled block runs n_layers times; False unrolls.
      sequence: between layers, the residual stream is split along the window, see `Context.split`.
      blocks: the stack.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        n_layers: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        scan_layers: bool = True,
        sequence: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes the blocks, each from random keys of its own; see the attributes."""
        known = ("none", "dots", "block", "full")
        require(remat in known, "train.remat", f"is {remat!r}, must be one of {', '.join(known)} with this base")
        self.n_layers, self.dtype, self.remat, self.scan_layers = n_layers, jnp.dtype(dtype), remat, scan_layers
        self.sequence = sequence
        make = nnx.split_rngs(splits=n_layers)(nnx.vmap(in_axes=0, out_axes=0)(make_block))
        self.blocks: Any = make(rngs)

    def run_blocks(self, carry: Carry, step: Step) -> Carry:
        """step(block, carry, index) for every block in turn, rematerialised as asked; without a cache."""
        graphdef, stacked = nnx.split(self.blocks)

        def body(carry: Any, layer_and_index: tuple[Any, Any]) -> tuple[Any, None]:
            layer, index = layer_and_index
            return step(nnx.merge(graphdef, layer), carry, index), None

        def run(carry: Any, layers_and_indices: tuple[Any, jax.Array]) -> tuple[Any, None]:
            if self.scan_layers:
                return jax.lax.scan(one, carry, layers_and_indices)
            for i in range(layers_and_indices[1].shape[0]):
                carry, _ = one(carry, jax.tree.map(lambda p, i=i: p[i], layers_and_indices))
            return carry, None

        one = _rematerialised(body, self.remat)
        everything = (stacked, jnp.arange(self.n_layers))
        if self.remat == "full":
            size = _group_size(self.n_layers)
            groups = jax.tree.map(lambda p: p.reshape(-1, size, *p.shape[1:]), everything)
            return jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, groups)[0]
        return run(carry, everything)[0]

    def block_list(self) -> list[Any]:
        """The blocks one by one, each with arrays of its own."""
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        graphdef, stacked = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked)) for i in range(self.n_layers)]

    def unstack(self) -> None:
        """Holds each block's parameters in arrays of their own from now on; then `hidden` needs a cache.

        Decoding reads every weight at every token, and a slice of a stack would be copied each time.
        """
        self.blocks = nnx.List(self.block_list())

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """The (D, V) kernel that maps hidden states to logits, and its bias (V,) or None."""
        raise NotImplementedError

    def extra_loss(
        self,
        aux: dict[str, jax.Array],
        segment_ids_BxL: jax.Array | None,
        weight_B: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """What training adds to the sum of the losses of a batch.

        Args:
          aux: from `hidden`.
          segment_ids_BxL: as `hidden` had them.
          weight_B: targets of each row; what is a mean over tokens is to be multiplied by it.
          key: of all randomness.
          step: updates done so far.
        """
        return jnp.zeros(())

    def statistics(
        self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None, positions_BxL: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Scalars that tell what the layers do with a window, for the record of a run."""
        return {}

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 logits (..., V) of hidden states (..., D); for a few positions, not for training."""
        kernel, bias = self.head_kernel()
        wide = jnp.promote_types(self.dtype, jnp.float32)
        y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide)
        return y if bias is None else y + bias.astype(wide)


def _rematerialised(body: Any, remat: str) -> Any:
    if remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)(body)


def _group_size(n_layers: int) -> int:
    """The divisor of n_layers nearest below its square root."""
    return max(d for d in range(1, math.isqrt(n_layers) + 1) if n_layers % d == 0)
