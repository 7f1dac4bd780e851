"""The baseline transformer of the gravity model, and the base class of both."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import VanillaConfig
from psann_jax.models.text_network import Cache, TextNetwork
from psann_jax.nn.attention import Attention, AttentionOptions
from psann_jax.nn.context import Context, LayerCache, make_context
from psann_jax.nn.embedding import embed
from psann_jax.nn.initial import INITIALS
from psann_jax.nn.mlp import MLP, MLPOptions
from psann_jax.nn.norm import LayerNorm
from psann_jax.nn.partition import param
from psann_jax.ops import kernels
from psann_jax.ops.attention_choice import AttentionCase, describe_attention


class TiedHead(TextNetwork):
    """A stack whose head is the transposed embedding with a separate bias."""

    def __init__(self, config: VanillaConfig, make_block: Any, *, rngs: nnx.Rngs, **options: Any):
        """Creates embedding, blocks, final norm and head bias; `options` are those of `Layered`."""
        self.config = config
        v, d, initial = config.vocab_size, config.d_model, INITIALS[config.init]
        self.embed = param(rngs, initial.embedding, (v, d), "embedding", ("vocab", "embed"))
        super().__init__(make_block, config.n_layers, rngs=rngs, **options)
        self.norm = LayerNorm(d, rngs=rngs)
        self.head_bias = param(rngs, initial.bias(d), (v,), "bias", ("vocab",))

    def embedded(self, tokens_BxL: jax.Array) -> jax.Array:
        """Looks up the embeddings (B, L, D) of tokens, in the compute dtype."""
        return embed(self.embed[...], tokens_BxL, self.dtype)

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """See `Layered`."""
        return self.embed[...].T, self.head_bias[...]


def mlp_options(config: VanillaConfig) -> MLPOptions:
    """Options of the MLPs of both networks: dropout on the hidden features and on the output."""
    rate = config.dropout
    return MLPOptions(config.d_model, config.d_mlp, config.mlp_activation, config.sine, rate, rate)


class VanillaBlock(nnx.Module):
    """x = x + attention(norm1(x)); x = x + mlp(norm2(x))."""

    def __init__(self, config: VanillaConfig, *, rngs: nnx.Rngs):
        d, initial = config.d_model, INITIALS[config.init]
        attention = AttentionOptions(
            d, config.n_heads, bias=True, dropout=config.dropout, implementation=config.attention
        )
        self.norm1 = LayerNorm(d, rngs=rngs)
        self.attn = Attention(attention, initial=initial, rngs=rngs)
        self.norm2 = LayerNorm(d, rngs=rngs)
        self.mlp = MLP(mlp_options(config), initial=initial, rngs=rngs)

    def __call__(
        self, x_BxLxD: jax.Array, context: Context, cache: LayerCache | None, key: jax.Array | None
    ) -> tuple[jax.Array, LayerCache]:
        """Applies the block; arguments and results as for `Attention`."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        attended, updated = self.attn(context.whole(self.norm1(x_BxLxD)), context, cache, keys[0])
        x_BxLxD = x_BxLxD + context.split(attended)
        return x_BxLxD + context.split(self.mlp(context.whole(self.norm2(x_BxLxD)), keys[1])), updated


class Vanilla(TiedHead):
    """Embedding plus learned positions, pre-norm blocks, a final norm and a tied head."""

    def __init__(self, config: VanillaConfig, *, rngs: nnx.Rngs, **options: Any):
        """Creates the float32 parameters; `options` are those of `Layered`."""
        shape = (config.n_positions, config.d_model)
        self.positions = param(rngs, INITIALS[config.init].embedding, shape, "embedding", ("positions", "embed"))
        super().__init__(config, lambda rngs: VanillaBlock(config, rngs=rngs), rngs=rngs, **options)

    @staticmethod
    def live_attention(config: VanillaConfig, *, dtype: Any, has_segment_ids: bool, length: int) -> str:
        """See `TextNetwork` and `describe_attention`."""
        case = AttentionCase(
            dtype,
            config.d_model // config.n_heads,
            has_segment_ids=has_segment_ids,
            length=length,
            context=kernels.window_parts(),
            dropout=config.dropout,
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
        """Applies the network up to the final norm; see `TextNetwork`."""
        context = make_context(tokens_BxL, segment_ids_BxL, None if cache is None else cache["length"])
        context = replace(context, sequence=self.sequence and cache is None)
        positions = context.reach_BxL if positions_BxL is None else positions_BxL
        x = self.embedded(tokens_BxL) + embed(self.positions[...], positions, self.dtype, None)
        x = context.split(x)
        if cache is not None:
            layers = []
            for block, entry in zip(self.block_list(), cache["layers"], strict=True):
                x, entry = block(x, context, entry, None)
                layers.append(entry)
            return self.norm(x), {"length": cache["length"] + context.valid_B, "layers": layers}, {}

        def step(block: VanillaBlock, x: jax.Array, index: jax.Array) -> jax.Array:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return context.split(block(x, context, None, key)[0])

        return context.whole(self.norm(self.run_blocks(x, step))), None, {}

    def init_cache(self, batch: int, length: int) -> Cache:
        """See `TextNetwork`."""
        c = self.config
        kv = (batch, c.n_heads, length, c.d_model // c.n_heads)
        layers = [{name: jnp.zeros(kv, self.dtype) for name in ("k", "v")} for _ in range(c.n_layers)]
        return {"length": jnp.zeros((batch,), jnp.int32), "layers": layers}

    def cache_axes(self) -> Cache:
        """See `TextNetwork`."""
        entry = dict.fromkeys(("k", "v"), ("batch", "heads", None, None))
        return {"length": ("batch",), "layers": [entry] * self.config.n_layers}
