"""A batch whose rows begin and end independently of each other: continuous batching.

Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import numpy as np

from psann_jax.config import require
from psann_jax.sample.generation import Row, not_finite
from psann_jax.sample.sampler import Sampler, State
from psann_jax.sample.settings import Adjustment, Sampling
from psann_jax.utils.errors import UserError

# A prompt is processed in pieces of these sizes, so that prompts of all lengths need three programs.
_PIECES = (256, 64, 16)
_SCORED_PIECES = (64,)  # of prompts whose tokens are scored: one program more, and logits of 64 positions at once
_IDLE = Sampling(temperature=0.0, top_p=1.0)  # of free slots: it turns all filters off


@dataclass
class SlotRow(Row):
    """One text with its own settings.

    Attributes:
      sampling: how its tokens are chosen.
      limit: most tokens that are generated; 0: none, the prompt is only read.
      adjustment: what it adds to the logits of tokens; None: nothing.
      seed: of its random numbers, below 2**32.
      stream: a number below 2**32; with the seed and the position it determines the random numbers.
      n_alternatives: most probable tokens that are recorded for each position.
      top: for each generated token the n_alternatives most probable ones, (id, log-probability).
      is_scored: whether the prompt's tokens are scored, too.
      prompt_logprobs, prompt_top: of the prompt's tokens from the second on, if they are scored.
      error: what ended the row early, otherwise "".
    """

    sampling: Sampling = field(default_factory=Sampling)
    limit: int = 16
    adjustment: Adjustment | None = None
    seed: int = 0
    stream: int = 0
    n_alternatives: int = 0
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    is_scored: bool = False
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_top: list[list[tuple[int, float]]] = field(default_factory=list)
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
        if self._sampler.n_alternatives:
            self.begin(0, SlotRow([0, 0], limit=0, is_scored=True))
        self.reset()

    def begin(self, slot: int, row: SlotRow) -> None:
        """Starts a row in a free slot.

        Args:
          slot: its index.
          row: its prompt has at least one token, ids of the vocabulary. It ends at once if nothing is to be generated
            or logits of a scored prompt are not finite.

        Raises:
          UserError: prompt and continuation have more tokens than `capacity`, and one: the last is not read again.
        """
        n = len(row.prompt) + row.limit
        require(n <= self.capacity + 1, "max_tokens", f"makes {n} tokens with the prompt, more than {self.capacity}")
        seen_1xV = np.zeros((1, self._sampler.vocab_size), np.bool_)
        seen_1xV[0, row.prompt] = True
        last_1 = np.array([row.prompt[-1]], np.int32)
        alone = self._sampler.init_state(last_1, seen_1xV, self.capacity, self._bias(row))
        if row.is_scored:
            alone = self._score_prompt(alone, row)
        else:
            for tokens_1xL, n in _pieces(row.prompt[:-1], _PIECES):
                alone = self._sampler.prefill(alone, tokens_1xL, np.array([n], np.int32), np.zeros(1, np.bool_))
        if row.limit == 0 and row.finish is None:
            row.finish = "length"
        self._state = self._sampler.join(self._state, alone, slot)
        self.rows[slot] = row

    def _bias(self, row: SlotRow) -> np.ndarray | None:
        if row.adjustment is None:
            return None
        assert self._sampler.has_adjustments
        bias_1xV = np.zeros((1, self._sampler.vocab_size), np.float32)
        for i, bias in row.adjustment.logit_bias.items():
            bias_1xV[0, i] = bias
        return bias_1xV

    def _score_prompt(self, state: State, row: SlotRow) -> State:
        """Appends all tokens of a prompt but the last to the cache, and records the scores of all but the first."""
        pieces = (_pieces(ids, _SCORED_PIECES) for ids in (row.prompt[:-1], row.prompt[1:]))
        for (tokens_1xL, n), (next_1xL, _) in zip(*pieces, strict=True):
            state, out = self._sampler.score(state, tokens_1xL, next_1xL, n)
            row.prompt_logprobs += out["logprobs"].tolist()
            row.prompt_top += _top(out["top_tokens"].tolist(), out["top_logprobs"].tolist(), row.n_alternatives)
        if not np.isfinite(row.prompt_logprobs).all():
            row.finish, row.error = "error", str(not_finite())
        return state

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
        if self._sampler.has_adjustments:
            control |= _penalties([row.adjustment for row in rows])
        self._state, out = self._sampler.decode(self._state, control, steps)
        for i, row in enumerate(rows):
            n = int((out["tokens"][i] >= 0).sum())
            if n:
                _extend(row, {name: array[i, :n].tolist() for name, array in out.items()}, self._sampler)


def _penalties(adjustments: Sequence[Adjustment | None]) -> dict[str, np.ndarray]:
    """Returns what `Sampler.decode` needs to know of the adjustments of all rows."""
    given = [one or Adjustment() for one in adjustments]
    return {
        "adjusted": np.array([one is not None for one in adjustments]),
        "presence_penalty": np.array([one.presence_penalty for one in given], np.float32),
        "frequency_penalty": np.array([one.frequency_penalty for one in given], np.float32),
    }


def _extend(row: SlotRow, out: dict[str, list], sampler: Sampler) -> None:
    try:
        row.extend(out["tokens"], out["logprobs"], sampler, row.limit)
    except UserError as error:
        row.finish, row.error = "error", str(error)
        return
    if row.n_alternatives:
        row.top += _top(out["top_tokens"], out["top_logprobs"], row.n_alternatives)


def _top(tokens: list[list[int]], logprobs: list[list[float]], n: int) -> list[list[tuple[int, float]]]:
    """Returns the n most probable tokens of each position, (id, log-probability)."""
    return [list(zip(*pair, strict=True))[:n] for pair in zip(tokens, logprobs, strict=True)]


def _pieces(tokens: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields arrays (1, L), L one of the sizes, padded at the end, with the number of tokens in each."""
    start = 0
    while start < len(tokens):
        size = next((size for size in sizes if size <= len(tokens) - start), sizes[-1])
        part = tokens[start : start + size]
        padded_1xL = np.zeros((1, size), np.int32)
        padded_1xL[0, : len(part)] = part
        yield padded_1xL, len(part)
        start += len(part)
