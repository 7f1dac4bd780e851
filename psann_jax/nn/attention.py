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
from psann_jax.nn.linear import Linear, Order, same_order
from psann_jax.nn.norm import RMSNorm
from psann_jax.nn.partition import constrain, per_shard, shard_of
from psann_jax.nn.positions import halves_first, rotate, rotate_halves
from psann_jax.ops import kernels
from psann_jax.ops.attention import KERNELS, cached_attention, causal_attention, kernel_with_dropout
from psann_jax.ops.attention_choice import AttentionCase, choose_attention
from psann_jax.ops.attention_dropout import MaskWords, words_if_dropped
from psann_jax.ops.attention_reference import Static
from psann_jax.ops.attention_ring import ring_attention
from psann_jax.ops.attention_splash import gathered_splash_attention, kernel_of_parts
from psann_jax.ops.dropout import dropout
from psann_jax.ops.full_attention import attention_weights
from psann_jax.ops.tiles import Dropout

_HEADS = ("batch", "time", "heads", None)  # axes of queries, keys and values


@dataclass(frozen=True)
class AttentionOptions:
    """Sizes and options of `Attention`.

    Attributes:
      d_model: features.
      n_heads: heads, which divide the features.
      n_kv_heads: heads of keys and values, which divide n_heads; 0: n_heads.
      qk_norm: whether queries and keys of each head are normalised before the rotation of their positions.
      window: tokens that a token sees, itself included; 0: all before it. Causal attention only.
      causal: whether a token attends to earlier tokens of its document only, or to the whole window.
      bias: whether the projections have biases.
      dropout: rate on the attention weights.
      output_dropout: rate on the output.
      implementation: of causal attention, see `psann_jax.ops.attention_choice`.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int = 0
    qk_norm: bool = False
    window: int = 0
    causal: bool = True
    bias: bool = False
    dropout: float = 0.0
    output_dropout: float = 0.0
    implementation: str = "auto"

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """Features per head."""
        return self.d_model // self.n_heads


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K)) v over the visible tokens, projected. Source: Vaswani et al. (2017).

    Source of the norm of queries and keys: Henry et al., "Query-Key Normalization for Transformers", 2020, with RMSNorm
    as in OLMo 2 (2024); of grouped heads and of the sliding window: see `causal_attention`.
    """

    def __init__(self, options: AttentionOptions, *, initial: Initial = XAVIER, rngs: nnx.Rngs):
        self.options = options
        d = options.d_model
        make = partial(Linear, bias=options.bias, initial=initial, rngs=rngs)
        kv = options.kv_heads * options.head_dim
        self.q, self.k, self.v = (make((d, size), ("embed", "heads")) for size in (d, kv, kv))
        self.o = make((d, d), ("heads", "embed"), initial=initial.of_outputs())
        self.q_norm, self.k_norm = (RMSNorm(options.head_dim, rngs=rngs) if options.qk_norm else None for _ in range(2))

    def __call__(
        self, x_BxLxD: jax.Array, context: Context, cache: LayerCache | None, key: jax.Array | None
    ) -> tuple[jax.Array, LayerCache]:
        """Attends within the window or, with a cache, to all that it holds.

        Args:
          x_BxLxD: normalised input.
          context: shared arrays.
          cache: {"k", "v"}, each (B, G, S, K) for G heads of keys and values, or None.
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
            out = cached_attention(q, k, v, context.reach_BxL, window=options.window, alibi_slopes_H=context.alibi_H)
        elif options.causal:
            out = self._causal(q, k, v, context, weights_dropout)
        else:
            out = full_attention(q, k, v, dropout=weights_dropout)
        # Mainly for the gradient of `out`, which could otherwise be sharded along the window.
        out = constrain(out, *_HEADS)
        return dropout(self.o(out.reshape(x_BxLxD.shape)), options.output_dropout, output_key), updated

    def weights(self, x_BxLxD: jax.Array, context: Context) -> jax.Array:
        """Weights (B, H, L, L), of queries on keys, of attention to the whole window; for inspection."""
        return attention_weights(*self._queries_and_keys(x_BxLxD, context, cached=False))

    def _causal(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context, dropout: Dropout) -> jax.Array:
        """Attends within the window, each device to its own rows, heads and positions."""
        segment_ids, alibi, window = context.segment_ids_BxL, context.alibi_H, self.options.window
        (shape, uneven), (_, uneven_kv) = shard_of(q.shape, _HEADS), shard_of(k.shape, _HEADS)
        rate = dropout.rate if dropout.key is not None else 0.0
        case = AttentionCase(
            q.dtype,
            q.shape[-1],
            segment_ids is not None,
            alibi is not None,
            rate,
            math.prod(shape),
            uneven or uneven_kv,
            q.shape[2] // k.shape[2],
            window,
            q.shape[1],
            kernels.window_parts(),
        )
        chosen = choose_attention(self.options.implementation, case)
        axes, arrays = (*[_HEADS] * 3, None if segment_ids is None else ("batch", "time")), (q, k, v, segment_ids)
        words_axes = MaskWords._make([("batch", "heads"), (None,)])
        out: jax.Array
        if chosen in KERNELS:
            kernel, words = kernel_with_dropout(chosen, dropout, q.shape)
            attend = partial(kernel, window=window)
            out = per_shard(attend, (*axes, *[words_axes] * len(words)), _HEADS)(*arrays, *words)
        elif chosen == "splash_gathered":
            part, specs = kernel_of_parts(shape[1], shape[2], window=window)
            out = per_shard(gathered_splash_attention, (specs, *axes), _HEADS)(part, *arrays)
        elif chosen == "ring":
            masks = words_if_dropped(dropout, q.shape)
            more = (None if alibi is None else ("heads",), None if masks is None else words_axes)
            attend = partial(ring_attention, Static(rate, window))
            out = per_shard(attend, (*axes, *more), _HEADS)(*arrays, alibi, masks)
        else:
            out = causal_attention(
                q,
                k,
                v,
                segment_ids_BxL=segment_ids,
                window=window,
                alibi_slopes_H=alibi,
                dropout=dropout,
                implementation=chosen,
            )
        return out

    def _queries_and_keys(self, x_BxLxD: jax.Array, context: Context, *, cached: bool) -> tuple[jax.Array, jax.Array]:
        if context.rope is None:
            return self._normalised(self._heads(self.q, x_BxLxD), self._heads(self.k, x_BxLxD))
        # For few positions, reordering the parameters would cost more than it saves.
        reason = "few positions at a time" if cached else "" if kernels.platform() == "tpu" else "no faster"
        halves = kernels.Candidate("halves", reason, is_kernel=False)
        if kernels.choose("rotate", halves, kernels.Candidate("pairs", is_kernel=False)) == "halves":
            q, k = (
                self._heads(partial(project, order=partial(halves_first, n_heads=n)), x_BxLxD)
                for project, n in ((self.q, self.options.n_heads), (self.k, self.options.kv_heads))
            )
            q, k = self._normalised(q, k, partial(halves_first, n_heads=1))
            return rotate_halves(q, context.rope), rotate_halves(k, context.rope)
        q, k = self._normalised(self._heads(self.q, x_BxLxD), self._heads(self.k, x_BxLxD))
        return rotate(q, context.rope), rotate(k, context.rope)

    def _normalised(self, q: jax.Array, k: jax.Array, order: Order = same_order) -> tuple[jax.Array, jax.Array]:
        """Applies the norms of queries and keys, if there are any, to heads whose features are ordered by `order`."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q, order), self.k_norm(k, order)

    def _heads(self, project: Callable[[jax.Array], jax.Array], x_BxLxD: jax.Array) -> jax.Array:
        heads = project(x_BxLxD).reshape(*x_BxLxD.shape[:2], -1, self.options.head_dim)
        return constrain(heads, *_HEADS)
