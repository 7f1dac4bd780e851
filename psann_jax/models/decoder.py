"""The decoder-only language model behind the bases transformer, respsann, sgrpsann and waveresnet."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psann_jax.config import DecoderConfig
from psann_jax.models.block import Block
from psann_jax.nn.context import Context, LayerCache
from psann_jax.nn.norm import NORMS
from psann_jax.nn.partition import constrain, param, xavier_uniform
from psann_jax.nn.positions import document_reach, rope_tables, sinusoidal_encoding
from psann_jax.ops.attention import alibi_slopes

Cache = dict[str, Any]


def _embedding_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, jnp.float32)


class Decoder(nnx.Module):
    """Embedding, a stack of pre-norm blocks, a final norm and an untied head.

    The parameters of all blocks are stacked along a leading layer axis, whether the stack runs as one scanned
    layer or unrolled, so that neither this switch nor rematerialisation changes a parameter or a value.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        scan_layers: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes the initial parameters, in float32.

        Args:
          config: sizes and options; vocab_size must be set.
          dtype: of activations and of the cache.
          remat: none, dots (keep matrix products), block (keep the input of every block) or full (keep
            the input of every ~sqrt(n_layers)-th block).
          scan_layers: run one compiled block n_layers times; False unrolls.
          rngs: with a `params` stream.
        """
        self.config = config = config.resolve()
        self.dtype, self.remat, self.scan_layers = jnp.dtype(dtype), remat, scan_layers
        v, d = config.vocab_size, config.d_model
        self.embed = param(rngs, _embedding_init, (v, d), "embedding", ("vocab", "embed"))

        @nnx.split_rngs(splits=config.n_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks: Any = make_blocks(rngs)
        self.norm = NORMS[config.norm or "rmsnorm"](d, rngs=rngs)
        self.head = param(rngs, xavier_uniform, (d, v), "embedding", ("embed", "vocab"))

    def hidden(
        self,
        tokens_BxL: jax.Array,
        segments_BxL: jax.Array | None = None,
        positions_BxL: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Runs the network up to the final norm.

        Args:
          tokens_BxL: token ids.
          segments_BxL: document of each token in the window, 0 for padding; None: one document a row. With
            a cache only padding matters, and it must be at the end of a row.
          positions_BxL: of each token in its document; None: counted from the start of the document.
          cache: from `init_cache` or an earlier call; the tokens are appended to it.
          dropout_key: switches dropout on.

        Returns:
          (B, L, D) in the compute dtype; the new cache or None; extra losses and statistics (none here).
        """
        context, positions_BxL = self._context(tokens_BxL, segments_BxL, positions_BxL, cache)
        # Gathered over fsdp first: a look-up in columns that are split apart makes XLA replicate its results.
        x = constrain(self.embed[...].astype(self.dtype), "vocab", None)[tokens_BxL]
        if self.config.positional_encoding == "sinusoidal":
            x += sinusoidal_encoding(positions_BxL, self.config.d_model, self.dtype)
        x = constrain(x, "batch", None, None)
        if cache is None:
            x, updated = self._stack(x, context, dropout_key), None
        else:
            x, updated = self._cached_stack(x, context, cache)
        return self.norm(x), updated, {}

    def head_kernel(self) -> tuple[jax.Array, jax.Array | None]:
        """The (D, V) kernel that maps hidden states to logits, and its bias (V,) or None."""
        return self.head[...], None

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 logits (..., V) of hidden states (..., D); for a few positions, not for training."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return jnp.matmul(x, self.head[...].astype(x.dtype), preferred_element_type=wide)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens."""
        c = self.config
        kv = (batch, c.n_heads, length, c.d_model // c.n_heads)
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
        """The logical axes of every array of `init_cache`, in its structure."""
        kv, history = ("batch", "heads", None, None), ("batch", None, None)
        axes = {"k": kv, "v": kv, "wave": history, "spectral": history}
        entries = jax.eval_shape(lambda: self.init_cache(1, 1)["layers"])
        return {"length": ("batch",), "layers": [{name: axes[name] for name in entry} for entry in entries]}

    def unstack(self) -> None:
        """Holds each block's parameters in arrays of their own from now on; then `hidden` needs a cache.

        Decoding reads every weight at every token, and a slice of a stack would be copied each time.
        """
        self.blocks = nnx.List(self._block_list())

    def _context(
        self,
        tokens_BxL: jax.Array,
        segments_BxL: jax.Array | None,
        positions_BxL: jax.Array | None,
        cache: Cache | None,
    ) -> tuple[Context, jax.Array]:
        c = self.config
        index = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32), tokens_BxL.shape)
        slots = valid_B = None
        if cache is not None:
            valid = jnp.ones_like(tokens_BxL) if segments_BxL is None else (segments_BxL > 0).astype(jnp.int32)
            valid_B = jnp.sum(valid, axis=1)
            reach = index + cache["length"][:, None]
            slots = jnp.where(valid > 0, reach, jnp.iinfo(jnp.int32).max)  # padding is dropped
            segments_BxL = None
        elif segments_BxL is None:
            reach = index
        else:
            reach = document_reach(segments_BxL)
        positions = reach if positions_BxL is None else positions_BxL
        rope = None
        if c.positional_encoding == "rope":
            rope = rope_tables(positions, c.d_model // c.n_heads, self.dtype)
        alibi = alibi_slopes(c.n_heads) if c.positional_encoding == "alibi" else None
        return Context(segments_BxL, reach, rope, alibi, slots, valid_B), positions

    def _stack(self, x: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        """All blocks without a cache, scanned or unrolled, rematerialised as asked."""
        c = self.config
        graphdef, stacked = nnx.split(self.blocks)

        def body(x: jax.Array, layer_and_index: tuple[Any, Any]) -> tuple[jax.Array, None]:
            layer, index = layer_and_index
            layer_key = None if key is None else jax.random.fold_in(key, index)
            growth = c.wave.dilation_growth
            dilation = 1 if growth == 1 else growth**index
            max_shift = (c.wave.kernel - 1) * growth ** (c.n_layers - 1)
            x, _ = nnx.merge(graphdef, layer)(x, context, None, layer_key, dilation=dilation, max_shift=max_shift)
            return constrain(x, "batch", None, None), None

        def run(x: jax.Array, layers_and_indices: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            if self.scan_layers:
                return jax.lax.scan(step, x, layers_and_indices)
            for i in range(layers_and_indices[1].shape[0]):
                x, _ = step(x, jax.tree.map(lambda p, i=i: p[i], layers_and_indices))
            return x, None

        step = _rematerialised(body, self.remat)
        everything = (stacked, jnp.arange(c.n_layers))
        if self.remat == "full":
            size = _group_size(c.n_layers)
            groups = jax.tree.map(lambda p: p.reshape(-1, size, *p.shape[1:]), everything)
            return jax.lax.scan(jax.checkpoint(run, prevent_cse=False), x, groups)[0]
        return run(x, everything)[0]

    def _cached_stack(self, x: jax.Array, context: Context, cache: Cache) -> tuple[jax.Array, Cache]:
        """All blocks unrolled, so that every layer's cache has its own size and is updated in place."""
        growth, layers = self.config.wave.dilation_growth, []
        for i, (block, entry) in enumerate(zip(self._block_list(), cache["layers"], strict=True)):
            shift = (self.config.wave.kernel - 1) * growth**i
            x, entry = block(x, context, entry, None, dilation=growth**i, max_shift=shift)
            layers.append(entry)
        return x, {"length": cache["length"] + context.valid_B, "layers": layers}

    def _block_list(self) -> list[Block]:
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        graphdef, stacked = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked)) for i in range(self.config.n_layers)]


def _rematerialised(body: Any, remat: str) -> Any:
    if remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)(body)


def _group_size(n_layers: int) -> int:
    """The divisor of n_layers nearest below its square root."""
    return max(d for d in range(1, math.isqrt(n_layers) + 1) if n_layers % d == 0)
