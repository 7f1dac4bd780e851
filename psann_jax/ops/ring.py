"""A ring of devices that each hold a part of every window, and the attention of all its tokens.

Each device keeps its queries. Blocks of keys and values travel from device to device, along the mesh axis context. A
device attends to one block at a time and merges the results by their logsumexp, so that it never holds more than one
block besides its own. Blocks of later tokens are not attended to.

Source: Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from psann_jax.ops import tiles
from psann_jax.ops.attention_dropout import MaskForm, MaskWords, mask_factors
from psann_jax.ops.kernels import CONTEXT_AXIS, window_parts
from psann_jax.ops.online_softmax import Options


class Visit(NamedTuple):
    """A block of keys at a device.

    Attributes:
      behind: tokens from the first key of the block to the first query of the device.
      pairs: query and key tiles that meet.
    """

    behind: Array | int
    pairs: tuple[np.ndarray, np.ndarray]


class Ring(NamedTuple):
    """What all devices of a ring do.

    Attributes:
      length: tokens of a device's part of a window.
      window: tokens that a query sees, itself included; 0: all.
      dropout_rate: of the attention weights.
    """

    length: int
    window: int = 0
    dropout_rate: float = 0.0

    def forward(self, attend: Callable[[Any, Visit], tuple[Array, Array]], travelling: Any) -> tuple[Array, Array]:
        """Attends to all blocks.

        Args:
          attend: takes a block and its visit, and returns the output of the device's queries, float32 or wider, and the
            logsumexp of their scores, which has an axis less.
          travelling: the device's own block, a pytree.

        Returns:
          The output and the logsumexp for all blocks.
        """

        def step(carry: Any, back: Array) -> tuple[Any, None]:
            travelling, found = carry
            travelling = _passed_on(travelling, 1)

            def more() -> tuple[Array, Array]:
                return _merged(found, attend(travelling, self._visit(back)))

            return (travelling, self._unless_later(back, more, found)), None

        found = attend(travelling, self._own())
        (_, found), _ = lax.scan(step, (travelling, found), self._hops())
        return found

    def backward(self, differentiate: Callable[[Any, Visit], tuple[Any, Any]], travelling: Any) -> tuple[Any, Any]:
        """Sums gradients over all blocks; those of a block travel with it, and return to the device that holds it.

        Args:
          differentiate: takes a block and its visit, and returns gradients of what the device keeps, and of the block.
          travelling: the device's own block.

        Returns:
          Both gradients, of the device's own arrays.
        """

        def step(carry: Any, back: Array) -> tuple[Any, None]:
            travelling, kept, sent = carry
            travelling, sent = _passed_on((travelling, sent), 1)

            def more() -> tuple[Any, Any]:
                gradients: tuple[Any, Any] = jax.tree.map(
                    jnp.add, (kept, sent), differentiate(travelling, self._visit(back))
                )
                return gradients

            return (travelling, *self._unless_later(back, more, (kept, sent))), None

        hops = self._hops()
        init = (travelling, *differentiate(travelling, self._own()))
        (_, kept, sent), _ = lax.scan(step, init, hops)
        return kept, _passed_on(sent, -len(hops))

    def options(self, visit: Visit, words: MaskWords | None, group: int = 1) -> Options:
        """Returns the options of a visit, with the masks of `tiles.dropout_factors` of the whole window.

        Args:
          visit: a block at this device.
          words: from `mask_words`, of this device's rows and heads; None without dropout.
          group: heads of queries per head of keys.
        """
        if words is None:
            return Options(visit.pairs, None, group)
        first_query = lax.axis_index(CONTEXT_AXIS) * self.length
        n, T = tiles.split_tiling(self.length)
        whole = tiles.tiling(self.length * window_parts())
        # A tile of these parts can begin anywhere among the tiles of the window, whose masks it takes.
        form = MaskForm(self.dropout_rate, *whole, aligned=n * T == self.length)

        def factors(shape: tuple[int, ...], i: Array, j: Array) -> Array:
            query = first_query + i * T
            key = first_query - visit.behind + j * T
            of_heads = mask_factors(form, (words.first_BxH[:, :, None, None], words.words_N), T, query, key)
            return of_heads.reshape(shape)

        return Options(visit.pairs, factors, group)

    def block(self, ids: tuple[Array, Array] | None, visit: Visit) -> tiles.Block:
        """Returns where the keys of a visit lie, given the documents of queries and keys."""
        return tiles.Block(ids, visit.behind, self.length)

    def _own(self) -> Visit:
        n, T = tiles.split_tiling(self.length)
        return Visit(0, tiles.tile_pairs(n, tiles.tiles_back(self.window, T) if self.window else None))

    def _visit(self, back: Array) -> Visit:
        """Returns the visit of the block of the device that is `back` places before this one."""
        return Visit(back * self.length, tiles.pairs_behind(*tiles.split_tiling(self.length), self.length, self.window))

    def _hops(self) -> Array:
        """Returns the numbers of places, from 1, that blocks travel; with a window, as far as any query sees."""
        others = window_parts() - 1
        reached = min(others, math.ceil((self.window - 1) / self.length)) if self.window else others
        return jnp.arange(1, reached + 1, dtype=jnp.int32)

    def _unless_later(self, back: Array, more: Callable[[], Any], found: Any) -> Any:
        """Returns more(), or `found` if the block of the device `back` places before this one is of later tokens."""
        return lax.cond(lax.axis_index(CONTEXT_AXIS) >= back, more, lambda: found)


def _merged(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Merges the outputs of attention to two sets of keys."""
    (a_out, a_lse), (b_out, b_lse) = a, b
    lse = jnp.logaddexp(a_lse, b_lse)
    return a_out * jnp.exp(a_lse - lse)[..., None] + b_out * jnp.exp(b_lse - lse)[..., None], lse


def _passed_on(arrays: Any, places: int) -> Any:
    """Sends each device's arrays a number of places along the ring."""
    n = window_parts()
    pairs = [(i, (i + places) % n) for i in range(n)]
    return jax.tree.map(lambda x: lax.ppermute(x, CONTEXT_AXIS, pairs), arrays)


def columns_before(x_BxLxD: Array, width: int) -> Array:
    """Returns the `width` positions before a device's part of a window, (B, W, D), zeros before the first.

    Args:
      x_BxLxD: the device's part.
      width: at most the length of the window.
    """
    if not width:
        return x_BxLxD[:, :0]
    L, n = x_BxLxD.shape[1], window_parts()
    pieces = []
    for places in range(1, math.ceil(width / L) + 1):
        last = x_BxLxD[:, L - min(L, width - (places - 1) * L) :]
        # Devices that nothing is sent to get zeros.
        pairs = [(i, i + places) for i in range(n - places)]
        pieces.append(lax.ppermute(last, CONTEXT_AXIS, pairs) if pairs else jnp.zeros_like(last))
    return jnp.concatenate(pieces[::-1], axis=1)
