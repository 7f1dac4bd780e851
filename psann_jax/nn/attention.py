"""Multi-head attention with rotary or ALiBi positions and an explicit cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx

from psann_jax.nn.context import Context, LayerCache, append
from psann_jax.nn.full_attention import full_attention
from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constrain, per_shard, shard_of
from psann_jax.nn.positions import halves_first, rotate, rotate_halves
from psann_jax.ops import kernels
from psann_jax.ops.attention import KERNELS, cached_attention, causal_attention, kernel_with_dropout
from psann_jax.ops.attention_choice import AttentionCase, choose_attention
from psann_jax.ops.attention_dropout import MaskWords
from psann_jax.ops.dropout import dropout
from psann_jax.ops.full_attention import attention_weights
from psann_jax.ops.tiles import Dropout


@dataclass(frozen=True)
class AttentionOptions:
    """Sizes and options of `Attention`.

    Attributes:
      d_model: features.
      n_heads: heads, which divide the features.
      causal: whether a token attends to earlier tokens of its document only, or to the whole window.
      bias: whether the projections have biases.
      dropout: rate on the attention weights.
      output_dropout: rate on the output.
      implementation: of causal attention, see `psann_jax.ops.attention_choice`.
    """

    d_model: int
    n_heads: int
    causal: bool = True
    bias: bool = False
    dropout: float = 0.0
    output_dropout: float = 0.0
    implementation: str = "auto"


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K)) v over the visible tokens, projected. Source: Vaswani et al. (2017)."""

    def __init__(self, options: AttentionOptions, *, initial: Initial = XAVIER, rngs: nnx.Rngs):
        self.options = options
        d = options.d_model
        make = partial(Linear, (d, d), bias=options.bias, initial=initial, rngs=rngs)
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.o = make(("heads", "embed"), initial=initial.of_outputs())

    def __call__(
        self, x_BxLxD: jax.Array, context: Context, cache: LayerCache | None, key: jax.Array | None
    ) -> tuple[jax.Array, LayerCache]:
        """Attends within the window or, with a cache, to all that it holds.

        Args:
          x_BxLxD: normalised input.
          context: shared arrays.
          cache: {"k", "v"}, each (B, H, S, K), or None.
          key: for dropout, or None.

        Returns:
          (B, L, D) in the dtype of x, and the cache with the new keys and values.
        """
        options, updated = self.options, {}
        q, k = self._queries_and_keys(x_BxLxD, context, cached=cache is not None)
        v = self._heads(self.v, x_BxLxD)
        weights_key, output_key = (None, None) if key is None else jax.random.split(key)
        weights_dropout = Dropout(weights_key, options.dropout)
        if cache is not None:
            assert context.slots_BxL is not None
            updated = {name: append(cache[name], new, context.slots_BxL) for name, new in (("k", k), ("v", v))}
            k, v = (updated[name].swapaxes(1, 2) for name in ("k", "v"))
            out = cached_attention(q, k, v, context.reach_BxL, alibi_slopes_H=context.alibi_H)
        elif options.causal:
            out = self._causal(q, k, v, context, weights_dropout)
        else:
            out = full_attention(q, k, v, dropout=weights_dropout)
        # Mainly for the gradient of `out`, which could otherwise be sharded along the window.
        out = constrain(out, "batch", None, "heads", None)
        return dropout(self.o(out.reshape(x_BxLxD.shape)), options.output_dropout, output_key), updated

    def weights(self, x_BxLxD: jax.Array, context: Context) -> jax.Array:
        """Weights (B, H, L, L), of queries on keys, of attention to the whole window; for inspection."""
        return attention_weights(*self._queries_and_keys(x_BxLxD, context, cached=False))

    def _causal(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context, dropout: Dropout) -> jax.Array:
        """Attends within the window, each device to its own rows and heads."""
        segment_ids, alibi = context.segment_ids_BxL, context.alibi_H
        heads = ("batch", None, "heads", None)
        shape, uneven = shard_of(q.shape, heads)
        rate = dropout.rate if dropout.key is not None else 0.0
        case = AttentionCase(
            q.dtype, q.shape[-1], segment_ids is not None, alibi is not None, rate, math.prod(shape), uneven
        )
        chosen = choose_attention(self.options.implementation, case)
        if chosen in KERNELS:
            rows = None if segment_ids is None else ("batch", None)
            kernel, words = kernel_with_dropout(chosen, dropout, q.shape)
            axes = (heads, heads, heads, rows, *[MaskWords._make([("batch", "heads"), (None,)])] * len(words))
            out: jax.Array = per_shard(kernel, axes, heads)(q, k, v, segment_ids, *words)
            return out
        return causal_attention(
            q,
            k,
            v,
            segment_ids_BxL=segment_ids,
            alibi_slopes_H=alibi,
            dropout=dropout,
            implementation=chosen,
        )

    def _queries_and_keys(self, x_BxLxD: jax.Array, context: Context, *, cached: bool) -> tuple[jax.Array, jax.Array]:
        if context.rope is None:
            return self._heads(self.q, x_BxLxD), self._heads(self.k, x_BxLxD)
        # For few positions, reordering the parameters would cost more than it saves.
        reason = "few positions at a time" if cached else "" if kernels.platform() == "tpu" else "no faster"
        halves = kernels.Candidate("halves", reason, is_kernel=False)
        if kernels.choose("rotate", halves, kernels.Candidate("pairs", is_kernel=False)) == "halves":
            order = partial(halves_first, n_heads=self.options.n_heads)
            q, k = (self._heads(partial(project, order=order), x_BxLxD) for project in (self.q, self.k))
            return rotate_halves(q, context.rope), rotate_halves(k, context.rope)
        q, k = self._heads(self.q, x_BxLxD), self._heads(self.k, x_BxLxD)
        return rotate(q, context.rope), rotate(k, context.rope)

    def _heads(self, project: Callable[[jax.Array], jax.Array], x_BxLxD: jax.Array) -> jax.Array:
        heads = project(x_BxLxD).reshape(*x_BxLxD.shape[:2], self.options.n_heads, -1)
        return constrain(heads, "batch", None, "heads", None)
