"""The interface of a language model: what training on text and the sampler need of a network."""

import abc
from typing import Any

import jax
import jax.numpy as jnp

from psann_jax.models.layered import Layered

Cache = dict[str, Any]


class TextNetwork(Layered):
    """A stack of blocks between an embedding of tokens and a head over the vocabulary."""

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Computes the float32 logits (B, L, V) of the token after each token; each row is one document.

        All logits exist at once. For a large batch or vocabulary use `hidden`, `head_kernel` and
        `psann_jax.ops.cross_entropy.cross_entropy`, which forms them in chunks.

        Args:
          tokens_BxL: token ids.
        """
        return self.logits(self.hidden(tokens_BxL)[0])

    @abc.abstractmethod
    def hidden(
        self,
        tokens_BxL: jax.Array,
        segment_ids_BxL: jax.Array | None = None,
        positions_BxL: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Applies the network up to the final norm.

        Args:
          tokens_BxL: token ids.
          segment_ids_BxL: document of each token in the window, 0 for padding; None: one document per row. With a
            cache they only mark padding, which must be at the end of a row.
          positions_BxL: of each token in its document; None: count from the start of the document.
          cache: from `init_cache` or an earlier call. The tokens are appended to it.
          dropout_key: enables dropout.

        Returns:
          Hidden states (B, L, D) in the compute dtype; the new cache or None; arrays for `extra_loss`.
        """

    @abc.abstractmethod
    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache for `batch` rows of at most `length` tokens."""

    @abc.abstractmethod
    def cache_axes(self) -> Cache:
        """Returns the logical axes of every array of `init_cache`, in the same structure."""

    @staticmethod
    @abc.abstractmethod
    def live_attention(config: Any, *, dtype: Any, has_segment_ids: bool, length: int) -> str:
        """Returns the name of the attention implementation that runs, and on an accelerator why not a faster one.

        Args:
          config: the `model` section.
          dtype: of the computation.
          has_segment_ids: whether documents are masked.
          length: tokens of a window.
        """

    def extra_loss(
        self,
        aux: dict[str, jax.Array],
        segment_ids_BxL: jax.Array | None,
        weight_B: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """Returns a scalar that training adds to the sum of the losses of a batch.

        Args:
          aux: from `hidden`.
          segment_ids_BxL: as passed to `hidden`.
          weight_B: number of targets in each row, by which a mean over tokens must be multiplied.
          key: for all randomness.
          step: number of updates done so far.
        """
        return jnp.zeros(())

    def statistics(
        self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None, positions_BxL: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Returns scalars about the layers on a window, which a run records; {} if there are none."""
        return {}
