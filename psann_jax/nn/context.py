"""What every layer of a forward pass shares."""

from dataclasses import dataclass

import jax

LayerCache = dict[str, jax.Array]


@dataclass(frozen=True)
class Context:
    """Arrays of a forward pass that are the same in all layers.

    Attributes:
      segments_BxL: document of each token, None where every token may see all earlier ones.
      reach_BxL: earlier tokens of its document that each token has.
      rope: tables of `positions.rope_tables`, None without rotary positions.
      alibi_H: slopes, None without ALiBi.
      slots_BxL: where the tokens go in the cache; out of range drops them. None without a cache.
      valid_B: new tokens of each row that are not padding. None without a cache.
    """

    segments_BxL: jax.Array | None
    reach_BxL: jax.Array
    rope: tuple[jax.Array, jax.Array] | None = None
    alibi_H: jax.Array | None = None
    slots_BxL: jax.Array | None = None
    valid_B: jax.Array | None = None
