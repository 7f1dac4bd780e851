"""Causal multi-head attention with rotary or ALiBi positions and an explicit cache."""

from functools import partial

import jax
from flax import nnx

from psann_jax.config import DecoderConfig, VanillaConfig
from psann_jax.nn.context import Context, LayerCache, append
from psann_jax.nn.initial import XAVIER, Initial
from psann_jax.nn.linear import Linear
from psann_jax.nn.partition import constrain
from psann_jax.nn.positions import rotate
from psann_jax.ops.attention import cached_attention, causal_attention
from psann_jax.ops.dropout import dropout


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(K)) v over the earlier tokens of the same document."""

    def __init__(
        self,
        config: DecoderConfig | VanillaConfig,
        *,
        bias: bool = False,
        output_dropout: bool = True,
        initial: Initial = XAVIER,
        rngs: nnx.Rngs,
    ):
        """Args: config; whether projections have biases; whether the output is dropped, as the weights are; initial
        weights; rngs."""
        self.config, self.output_rate = config, config.dropout if output_dropout else 0.0
        make = partial(Linear, (config.d_model, config.d_model), bias=bias, initial=initial, rngs=rngs)
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.o = make(("heads", "embed"))

    def __call__(
        self, x_BxLxD: jax.Array, context: Context, cache: LayerCache | None, key: jax.Array | None
    ) -> tuple[jax.Array, LayerCache]:
        """Attends within the window or, with a cache, to everything in it.

        Args:
          x_BxLxD: normalised input.
          context: shared arrays.
          cache: {"k", "v"}, each (B, H, S, K), or None.
          key: for dropout, or None.

        Returns:
          (B, L, D) and the cache with the new keys and values.
        """
        c = self.config
        heads = (*x_BxLxD.shape[:2], c.n_heads, c.d_model // c.n_heads)
        q, k, v = (constrain(p(x_BxLxD).reshape(heads), "batch", None, "heads", None) for p in (self.q, self.k, self.v))
        if context.rope is not None:
            q, k = rotate(q, context.rope), rotate(k, context.rope)
        weights_key, output_key = (None, None) if key is None else jax.random.split(key)
        if cache is None:
            out = causal_attention(
                q,
                k,
                v,
                segment_ids_BxL=context.segment_ids_BxL,
                alibi_slopes_H=context.alibi_H,
                dropout_rate=c.dropout if key is not None else 0.0,
                dropout_key=weights_key,
                implementation=c.attention,
            )
            updated = {}
        else:
            assert context.slots_BxL is not None
            updated = {name: append(cache[name], new, context.slots_BxL) for name, new in (("k", k), ("v", v))}
            k, v = (updated[name].swapaxes(1, 2) for name in ("k", "v"))
            out = cached_attention(q, k, v, context.reach_BxL, alibi_slopes_H=context.alibi_H)
        out = constrain(out, "batch", None, "heads", None)  # its gradient above all, which might come split by position
        return dropout(self.o(out.reshape(x_BxLxD.shape)), self.output_rate, output_key), updated
