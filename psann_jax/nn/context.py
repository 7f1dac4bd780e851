"""Arrays that all layers of a forward pass share."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from psann_jax.nn.partition import constrain
from psann_jax.nn.positions import document_reach

LayerCache = dict[str, jax.Array]


@dataclass(frozen=True)
class Context:
    """Arrays and options that are the same in all layers of a forward pass.

    Attributes:
      segment_ids_BxL: document of each token; None if each token attends to all earlier ones.
      reach_BxL: number of earlier tokens in the document of each token.
      rope: from `positions.rope_tables`; None without rotary positions.
      alibi_H: slopes; None without ALiBi.
      slots_BxL: cache slot of each token; tokens with a slot out of range are dropped. None without a cache.
      valid_B: number of new tokens in each row that are not padding. None without a cache.
      sequence: whether the residual stream is also sharded along the window.
    """

    segment_ids_BxL: jax.Array | None
    reach_BxL: jax.Array
    rope: tuple[jax.Array, jax.Array] | None = None
    alibi_H: jax.Array | None = None
    slots_BxL: jax.Array | None = None
    valid_B: jax.Array | None = None
    sequence: bool = False

    def split(self, x_BxLxD: jax.Array) -> jax.Array:
        """Shards x like the residual stream, for operations on single positions.

        Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022: sequence
        parallelism, in which a layer ends with a reduce-scatter and the next begins with an all-gather.
        """
        return constrain(x_BxLxD, "batch", "sequence" if self.sequence else "time", None)

    def whole(self, x_BxLxD: jax.Array) -> jax.Array:
        """Undoes `split` over tensor, for operations that shard heads or features. Context still divides the window."""
        return constrain(x_BxLxD, "batch", "time", None)

    def channels(self, x_BxLxD: jax.Array) -> jax.Array:
        """Shards x by features instead of positions if the stream is sharded, for depthwise operations."""
        return constrain(x_BxLxD, "batch", None, "channels") if self.sequence else x_BxLxD


def make_context(
    tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None, cached_B: jax.Array | None = None
) -> Context:
    """Creates the context of the tokens in a window or, with a cache, after the cached tokens.

    Args:
      tokens_BxL: token ids.
      segment_ids_BxL: document of each token in the window, 0 for padding; None: one document per row. With a cache
        they only mark padding, which must be at the end of a row.
      cached_B: number of cached tokens in each row; None without a cache.
    """
    index = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32), tokens_BxL.shape)
    if cached_B is None:
        if segment_ids_BxL is None:
            return Context(None, constrain(index, "batch", "time"))
        # Of whole windows, so that devices with parts of one exchange ids once, if at all.
        segment_ids_BxL = constrain(segment_ids_BxL, "batch", None)
        reach = document_reach(segment_ids_BxL)
        return Context(constrain(segment_ids_BxL, "batch", "time"), constrain(reach, "batch", "time"))
    valid = jnp.ones_like(tokens_BxL) if segment_ids_BxL is None else (segment_ids_BxL > 0).astype(jnp.int32)
    reach = index + cached_B[:, None]
    slots = jnp.where(valid > 0, reach, jnp.iinfo(jnp.int32).max)  # padding is dropped
    return Context(None, reach, slots_BxL=slots, valid_B=jnp.sum(valid, axis=1))


def append(cached_BxHxSxK: jax.Array, new_BxLxHxK: jax.Array, slots_BxL: jax.Array) -> jax.Array:
    """Writes new entries to their slots in the cache of a layer.

    Heads come before slots, the order in which the matrix products of a decoding step read the cache; in another order
    it would be copied in every step.
    """
    row = jnp.arange(slots_BxL.shape[0])[:, None]
    return cached_BxHxSxK.at[row, :, slots_BxL].set(new_BxLxHxK.astype(cached_BxHxSxK.dtype), mode="drop")
