"""What every layer of a forward pass shares."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from psann_jax.nn.partition import constrain
from psann_jax.nn.positions import document_reach

LayerCache = dict[str, jax.Array]


@dataclass(frozen=True)
class Context:
    """What is the same in all layers of a forward pass.

    Attributes:
      segment_ids_BxL: document of each token, None where every token may see all earlier ones.
      reach_BxL: earlier tokens of its document that each token has.
      rope: tables of `positions.rope_tables`, None without rotary positions.
      alibi_H: slopes, None without ALiBi.
      slots_BxL: where the tokens go in the cache; out of range drops them. None without a cache.
      valid_B: new tokens of each row that are not padding. None without a cache.
      sequence: whether the residual stream is split along the window, too.
    """

    segment_ids_BxL: jax.Array | None
    reach_BxL: jax.Array
    rope: tuple[jax.Array, jax.Array] | None = None
    alibi_H: jax.Array | None = None
    slots_BxL: jax.Array | None = None
    valid_B: jax.Array | None = None
    sequence: bool = False

    def split(self, x_BxLxD: jax.Array) -> jax.Array:
        """x as the residual stream lies on the devices, for what treats every position alike.

        Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022: sequence
        parallelism, for which the sum that ends a layer becomes a reduce-scatter, and an all-gather begins the next.
        """
        return constrain(x_BxLxD, "batch", "sequence" if self.sequence else None, None)

    def whole(self, x_BxLxD: jax.Array) -> jax.Array:
        """x with the whole window on every device, for what divides its results."""
        return constrain(x_BxLxD, "batch", None, None)

    def channels(self, x_BxLxD: jax.Array) -> jax.Array:
        """x with the whole window of some features, where the stream is split, for what treats each feature alone."""
        return constrain(x_BxLxD, "batch", None, "channels") if self.sequence else x_BxLxD


def make_context(
    tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None, cached_B: jax.Array | None = None
) -> Context:
    """The context of tokens in a window or, with a cache, after what is in it.

    Args:
      tokens_BxL: token ids.
      segment_ids_BxL: document of each token in the window, 0 for padding; None: one document a row. With a cache only
        padding matters, and it must be at the end of a row.
      cached_B: tokens of each row in the cache; None without a cache.
    """
    index = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32), tokens_BxL.shape)
    if cached_B is None:
        reach = index if segment_ids_BxL is None else document_reach(segment_ids_BxL)
        return Context(segment_ids_BxL, reach)
    valid = jnp.ones_like(tokens_BxL) if segment_ids_BxL is None else (segment_ids_BxL > 0).astype(jnp.int32)
    reach = index + cached_B[:, None]
    slots = jnp.where(valid > 0, reach, jnp.iinfo(jnp.int32).max)  # padding is dropped
    return Context(None, reach, slots_BxL=slots, valid_B=jnp.sum(valid, axis=1))


def append(cached_BxHxSxK: jax.Array, new_BxLxHxK: jax.Array, slots_BxL: jax.Array) -> jax.Array:
    """The cache of a layer with new entries in their slots.

    Heads come before slots in a cache, as the products of a step read it; else it would be copied at each.
    """
    row = jnp.arange(slots_BxL.shape[0])[:, None]
    return cached_BxHxSxK.at[row, :, slots_BxL].set(new_BxLxHxK.astype(cached_BxHxSxK.dtype), mode="drop")
