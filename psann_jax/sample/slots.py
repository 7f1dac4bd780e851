"""A batch whose rows begin and end independently of each other: continuous batching.

Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import numpy as np

from psann_jax.config import require
from psann_jax.sample.generation import Row
from psann_jax.sample.sampler import Sampler, State
from psann_jax.sample.settings import Sampling
from psann_jax.utils.errors import UserError

# A prompt is processed in pieces of these sizes, so that prompts of all lengths need three programs.
_PIECES = (256, 64, 16)
_IDLE = Sampling(temperature=0.0, top_p=1.0)  # of free slots: it turns all filters off


@dataclass
class SlotRow(Row):
    """One text with its own settings.

    Attributes:
      sampling: how its tokens are chosen.
      limit: most tokens that are generated.
      seed: of its random numbers, below 2**32.
      stream: a number below 2**32; with the seed and the position it determines the random numbers.
      n_alternatives: most probable tokens that are recorded for each position.
      top: for each generated token the n_alternatives most probable ones, (id, log-probability).
      error: what ended the row early, otherwise "".
    """

    sampling: Sampling = field(default_factory=Sampling)
    limit: int = 16
    seed: int = 0
    stream: int = 0
    n_alternatives: int = 0
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    error: str = ""

    def stop(self, n_tokens: int) -> None:
        """See `Row`."""
        super().stop(n_tokens)
        del self.top[n_tokens:]


class Slots:
    """A fixed number of rows of a decoding state, each free or in use by a `SlotRow`.

    All shapes are fixed when it is made: after `warm_up`, nothing compiles. A text depends on its prompt and its own
    settings only, not on the slot or on the other rows (apart from rounding, where matrix products of a device
    depend on the row).

    Attributes:
      rows: the row in each slot; None: free.
      capacity: most tokens of a prompt and its continuation together.
    """

    def __init__(self, sampler: Sampler, n_slots: int, capacity: int | None = None) -> None:
        """Allocates the cache.

        Args:
          sampler: the network; its mesh must not divide the batch.
          n_slots: rows at once, at least 1.
          capacity: see above; None: the sampler's max_length.

        Raises:
          UserError: the mesh divides the batch, or the capacity is below 2 or above max_length.
        """
        longest = sampler.max_length
        self.capacity = longest if capacity is None else capacity
        require(sampler.rows_for(1) == 1, "mesh", "has data or fsdp above 1; only tensor can divide a model here")
        require(2 <= self.capacity <= longest, "max_length", f"is {self.capacity}, must be from 2 to {longest}")
        self._sampler = sampler
        self.rows: list[SlotRow | None] = [None] * n_slots
        self._idle = SlotRow([0], sampling=_IDLE)
        self.reset()

    def reset(self) -> None:
        """Frees all slots and empties the cache."""
        n = len(self.rows)
        self.rows = [None] * n
        seen_BxV = np.zeros((n, self._sampler.vocab_size), np.bool_)
        self._state: State = self._sampler.init_state(np.zeros(n, np.int32), seen_BxV, self.capacity)

    @property
    def free(self) -> list[int]:
        """The free slots."""
        return [i for i, row in enumerate(self.rows) if row is None]

    @property
    def nbytes(self) -> int:
        """Bytes of the decoding state, most of them the cache."""
        return sum(array.nbytes for array in jax.tree.leaves(self._state))

    def warm_up(self) -> None:
        """Compiles everything, with rows that are dropped."""
        for n in sorted({min(size + 1, self.capacity) for size in _PIECES} | {1}):
            self.begin(0, SlotRow([0] * n, limit=1, n_alternatives=1))
            self.advance(1)
            self.release(0)
        self.reset()

    def begin(self, slot: int, row: SlotRow) -> None:
        """Starts a row in a free slot.

        Args:
          slot: its index.
          row: its prompt has at least one token, ids of the vocabulary.

        Raises:
          UserError: prompt and continuation have more tokens than `capacity`, and one: the last is not read again.
        """
        n = len(row.prompt) + row.limit
        require(n <= self.capacity + 1, "max_tokens", f"makes {n} tokens with the prompt, more than {self.capacity}")
        seen_1xV = np.zeros((1, self._sampler.vocab_size), np.bool_)
        seen_1xV[0, row.prompt] = True
        alone = self._sampler.init_state(np.array([row.prompt[-1]], np.int32), seen_1xV, self.capacity)
        for tokens_1xL, n in _pieces(row.prompt[:-1]):
            alone = self._sampler.prefill(alone, tokens_1xL, np.array([n], np.int32), np.zeros(1, np.bool_))
        self._state = self._sampler.join(self._state, alone, slot)
        self.rows[slot] = row

    def release(self, slot: int) -> None:
        """Frees a slot, whether its row has ended or not."""
        self.rows[slot] = None

    def advance(self, steps: int) -> None:
        """Generates up to `steps` tokens for every row that has not ended; one whose logits are not finite ends."""
        rows = [row or self._idle for row in self.rows]
        settings = [row.sampling.scalars() for row in rows]
        stacked: dict[str, Any] = {f.name: np.stack([getattr(s, f.name) for s in settings]) for f in fields(Sampling)}
        control = {
            "active": np.array([row is not None and row.finish is None for row in self.rows]),
            "explained": np.array([row.n_alternatives > 0 for row in rows]),
            "capacity": np.int32(self.capacity),
            "limit": np.array([row.limit for row in rows], np.int32),
            "seed": np.array([row.seed for row in rows], np.uint32),
            "streams": np.array([row.stream for row in rows], np.uint32),
            "sampling": Sampling(**stacked),
        }
        self._state, out = self._sampler.decode(self._state, control, steps)
        for i, row in enumerate(rows):
            n = int((out["tokens"][i] >= 0).sum())
            if n:
                _extend(row, {name: array[i, :n].tolist() for name, array in out.items()}, self._sampler)


def _extend(row: SlotRow, out: dict[str, list], sampler: Sampler) -> None:
    try:
        row.extend(out["tokens"], out["logprobs"], sampler, row.limit)
    except UserError as error:
        row.finish, row.error = "error", str(error)
        return
    if row.n_alternatives:
        pairs = zip(out["top_tokens"], out["top_logprobs"], strict=True)
        row.top += [list(zip(*pair, strict=True))[: row.n_alternatives] for pair in pairs]


def _pieces(tokens: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields arrays (1, L) padded at the end, with the number of tokens in each."""
    start = 0
    while start < len(tokens):
        size = next((size for size in _PIECES if size <= len(tokens) - start), _PIECES[-1])
        part = tokens[start : start + size]
        padded_1xL = np.zeros((1, size), np.int32)
        padded_1xL[0, : len(part)] = part
        yield padded_1xL, len(part)
        start += len(part)
