"""Log-likelihoods of continuations under a trained run. Start with `Scorer`."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from psann_jax.config import require
from psann_jax.models.network import Network, Params
from psann_jax.runs.restore import TextRun
from psann_jax.sample.sampler import power_of_two
from psann_jax.train.mesh import batch_sharding, num_batch_shards, put_batch
from psann_jax.utils.errors import UserError

_POSITIONS_AT_ONCE = 64  # positions whose logits are in memory at a time, for all rows of a batch
_MIN_LENGTH = 16


class Score(NamedTuple):
    """The likelihood of a continuation.

    Attributes:
      logprob: sum of the natural logarithms of its tokens' probabilities.
      greedy: whether each of its tokens is the most probable one.
    """

    logprob: float
    greedy: bool


class Scorer:
    """Scores continuations with a run's network, in batches."""

    def __init__(self, run: TextRun, *, batch_size: int = 16):
        """Prepares scoring; nothing is compiled before the first call.

        Args:
          run: from `load_text_run`.
          batch_size: sequences per batch, over all devices.

        Raises:
          UserError: the mesh does not divide batch_size.
        """
        shards = num_batch_shards(run.mesh)
        fits = batch_size >= 1 and batch_size % shards == 0
        require(fits, "batch_size", f"is {batch_size}, must be a positive multiple of {shards}")
        self._run, self._batch_size = run, batch_size
        self._sharding = batch_sharding(run.mesh)
        self._scores = jax.jit(partial(_scores, run.network))

    @property
    def max_length(self) -> int:
        """The context length in tokens, that is, the window length in training."""
        return self._run.config.data.max_length

    def __call__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, progress: bool = False) -> list[Score]:
        """Scores continuations, each after its context.

        If context and continuation together are too long, the context is truncated from the left.

        Args:
          pairs: token ids of a context, at least one, and of its continuation.
          progress: whether to show a progress bar.

        Returns:
          One score per pair, in order.

        Raises:
          UserError: a context is empty, or a continuation is longer than max_length.
        """
        sequences = [self._sequence(*pair) for pair in pairs]
        # The longest first: running out of memory shows at once, and sequences of a batch have similar lengths.
        order = sorted(range(len(pairs)), key=lambda i: -len(sequences[i]))
        scores: dict[int, Score] = {}
        with jax.set_mesh(self._run.mesh), tqdm(total=len(pairs), unit=" scores", disable=not progress) as bar:
            for start in range(0, len(order), self._batch_size):
                batch_indices = order[start : start + self._batch_size]
                rows = [(sequences[i], len(pairs[i][1])) for i in batch_indices]
                batch = put_batch(self._batch(rows), self._sharding)
                logprobs, greedy = jax.device_get(self._scores(self._run.params, batch))
                for i, logprob, is_greedy in zip(batch_indices, logprobs, greedy, strict=False):
                    scores[i] = Score(float(logprob), bool(is_greedy))
                bar.update(len(batch_indices))
        return [scores[i] for i in range(len(pairs))]

    def _sequence(self, context: Sequence[int], continuation: Sequence[int]) -> list[int]:
        if not len(context):
            raise UserError("context: is empty; it must have at least the bos token")
        if len(continuation) > self.max_length:
            raise UserError(f"continuation: has {len(continuation)} tokens, more than the context of {self.max_length}")
        return [*context, *continuation][-(self.max_length + 1) :]

    def _batch(self, rows: Sequence[tuple[Sequence[int], int]]) -> dict[str, np.ndarray]:
        """Pads rows to one of a few lengths: inputs and targets, and which targets are scored."""
        longest = max(len(ids) for ids, _ in rows) - 1
        length = min(max(power_of_two(longest), _MIN_LENGTH), self.max_length)
        tokens = np.full((self._batch_size, length + 1), self._run.tokenizer.pad_id, np.int32)
        counts = np.zeros((self._batch_size, length), np.bool_)
        for row, (ids, n) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            counts[row, len(ids) - 1 - n : len(ids) - 1] = True
        return {"tokens": tokens, "counts": counts}


def _scores(network: Network, params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Sums of log-probabilities (B,) over the scored targets, and whether all of them are the most probable (B,)."""
    model = network.merge(params)
    x_BxLxD, _, _ = model.hidden(batch["tokens"][:, :-1])  # padding is at the end, where no token can attend to it

    def score_position(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_BxD, target_B = inputs
        logits_BxV = model.logits(x_BxD)
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), target_B[:, None], axis=1)[:, 0]
        return logp_B, logits_BxV.argmax(1) == target_B

    by_position = (x_BxLxD.swapaxes(0, 1), batch["tokens"][:, 1:].T)
    logp_LxB, hit_LxB = jax.lax.map(score_position, by_position, batch_size=_POSITIONS_AT_ONCE)
    counts_LxB = batch["counts"].T
    return jnp.sum(logp_LxB, axis=0, where=counts_LxB), jnp.all(hit_LxB | ~counts_LxB, axis=0)
