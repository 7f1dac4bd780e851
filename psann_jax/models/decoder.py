"""The decoder-only language model of the bases modern, transformer, respsann, sgrpsann and waveresnet."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import DecoderConfig
from psann_jax.models.block import Block
from psann_jax.models.text_network import Cache, TextNetwork
from psann_jax.nn.context import Context, LayerCache, make_context
from psann_jax.nn.embedding import embed
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.norm import NORMS
from psann_jax.nn.partition import param
from psann_jax.nn.positions import rope_tables, sinusoidal_encoding
from psann_jax.ops import kernels
from psann_jax.ops.attention import alibi_slopes
from psann_jax.ops.attention_choice import AttentionCase, describe_attention


class Decoder(TextNetwork):
    """Embedding, a stack of pre-norm blocks, a final norm and a head, which may be the transposed embedding."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, **options: Any):
        """Creates the float32 parameters.

        Args:
          config: sizes and options; vocab_size must be set.
          rngs: with a `params` stream.
          **options: of `Layered`.
        """
        self.config = config = config.resolve()
        v, d, initial = config.vocab_size, config.d_model, INITIALS[config.init or "xavier"]
        self.logit_softcap = config.logit_softcap
        self.embed = param(rngs, initial.embedding, (v, d), "embedding", ("vocab", "embed"))
        super().__init__(lambda rngs: Block(config, rngs=rngs), config.n_layers, rngs=rngs, **options)
        self.norm = NORMS[config.norm or "rmsnorm"](d, rngs=rngs)
        self.head = (
            None if config.tied_embeddings else param(rngs, initial.kernel, (d, v), "embedding", ("embed", "vocab"))
        )

    @staticmethod
    def live_attention(config: DecoderConfig, *, dtype: Any, has_segment_ids: bool, length: int) -> str:
        """See `TextNetwork` and `describe_attention`."""
        case = AttentionCase(
            dtype,
            config.d_model // config.n_heads,
            has_segment_ids=has_segment_ids,
            length=length,
            context=kernels.window_parts(),
            has_alibi=config.positional_encoding == "alibi",
            dropout=config.dropout,
            group=config.n_heads // config.kv_heads,
            window=config.sliding_window,
        )
        return describe_attention(config.attention, case)

    def hidden(
        self,
        tokens_BxL: jax.Array,
        segment_ids_BxL: jax.Array | None = None,
        positions_BxL: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """See `TextNetwork`."""
        c = self.config
        context = make_context(tokens_BxL, segment_ids_BxL, None if cache is None else cache["length"])
        context = replace(context, sequence=self.sequence and cache is None)
        positions = context.reach_BxL if positions_BxL is None else positions_BxL
        if c.positional_encoding == "rope":
            context = replace(context, rope=rope_tables(positions, c.d_model // c.n_heads, self.dtype))
        elif c.positional_encoding == "alibi":
            context = replace(context, alibi_H=alibi_slopes(c.n_heads))
        x = embed(self.embed[...], tokens_BxL, self.dtype)
        if c.positional_encoding == "sinusoidal":
            x += sinusoidal_encoding(positions, c.d_model, self.dtype)
        x = context.split(x)
        if cache is None:
            x, updated = self._stack(x, context, dropout_key), None
        else:
            x, updated = self._cached_stack(x, context, cache)
        return context.whole(self.norm(x)), updated, {}

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """See `Layered`."""
        return self.embed[...].T if self.head is None else self.head[...], None

    def init_cache(self, batch: int, length: int) -> Cache:
        """See `TextNetwork`."""
        c = self.config
        kv = (batch, c.kv_heads, length, c.d_model // c.n_heads)
        layers = []
        for layer in range(c.n_layers):
            entry: LayerCache = {"k": jnp.zeros(kv, self.dtype), "v": jnp.zeros(kv, self.dtype)}
            if c.wave.interleave or c.wave.replace:
                shift = (c.wave.kernel - 1) * c.wave.dilation_growth**layer
                entry["wave"] = jnp.zeros((batch, shift, c.d_model), self.dtype)
            if c.base == "sgrpsann":
                entry["spectral"] = jnp.zeros((batch, c.spectral.k_fft - 1, c.d_model), self.dtype)
            layers.append(entry)
        return {"length": jnp.zeros((batch,), jnp.int32), "layers": layers}

    def cache_axes(self) -> Cache:
        """See `TextNetwork`."""
        kv, history = ("batch", "heads", None, None), ("batch", None, None)
        axes = {"k": kv, "v": kv, "wave": history, "spectral": history}
        entries = jax.eval_shape(lambda: self.init_cache(1, 1)["layers"])
        return {"length": ("batch",), "layers": [{name: axes[name] for name in entry} for entry in entries]}

    def _stack(self, x: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """Applies all blocks without a cache."""
        wave = self.config.wave
        max_shift = (wave.kernel - 1) * wave.dilation_growth ** (self.n_layers - 1)

        def step(block: Block, x: jax.Array, index: jax.Array) -> jax.Array:
            layer_key = None if key is None else jax.random.fold_in(key, index)
            dilation = 1 if wave.dilation_growth == 1 else wave.dilation_growth**index
            x, _ = block(x, context, None, layer_key, dilation=dilation, max_shift=max_shift)
            return context.split(x)

        return self.run_blocks(x, step)

    def _cached_stack(self, x: jax.Array, context: Context, cache: Cache) -> tuple[jax.Array, Cache]:
        """Applies all blocks, unrolled, so that each layer has a cache of its own size that is updated in place."""
        growth, layers = self.config.wave.dilation_growth, []
        for i, (block, entry) in enumerate(zip(self.block_list(), cache["layers"], strict=True)):
            shift = (self.config.wave.kernel - 1) * growth**i
            x, entry = block(x, context, entry, None, dilation=growth**i, max_shift=shift)
            layers.append(entry)
        return x, {"length": cache["length"] + context.valid_B, "layers": layers}
