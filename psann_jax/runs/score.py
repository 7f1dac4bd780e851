"""Log-likelihoods of continuations under a trained run."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from psann_jax.config import require
from psann_jax.utils.errors import UserError
from psann_jax.models.network import Network, Params
from psann_jax.sample.sampler import power_of_two
from psann_jax.runs.restore import TextRun
from psann_jax.train.mesh import batch_sharding, batch_shards, put_batch

_POSITIONS_AT_ONCE = 64  # whose logits exist at a time, for all rows of a batch
_SHORTEST = 16


class Score(NamedTuple):
    """What a model thinks of a continuation.

    Attributes:
      logprob: sum over its tokens, natural logarithm.
      greedy: whether each of its tokens is the most probable one.
    """

    logprob: float
    greedy: bool


class Scorer:
    """Scores continuations with a run's network, many at once."""

    def __init__(self, run: TextRun, *, batch_size: int = 16):
        """Args:
        run: from `load_text_run`.
        batch_size: sequences at once, over all devices.

        Raises:
          UserError: batch_size cannot be divided over the mesh.
        """
        shards = batch_shards(run.mesh)
        fits = batch_size >= 1 and batch_size % shards == 0
        require(fits, "batch_size", f"is {batch_size}, must be a positive multiple of {shards}")
        self._run, self._batch_size = run, batch_size
        self._sharding = batch_sharding(run.mesh)
        self._scores = jax.jit(partial(_scores, run.network))

    @property
    def max_length(self) -> int:
        """Most tokens that the network reads: the window that it was trained on."""
        return self._run.config.data.max_length

    def __call__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, progress: bool = False) -> list[Score]:
        """Scores of continuations, each after its context.

        Where context and continuation are too long together, the context loses its beginning.

        Args:
          pairs: ids of a context, one at least, and of its continuation.
          progress: whether a bar is shown.

        Raises:
          UserError: an empty context, or a continuation that is longer than the window.
        """
        sequences = [self._sequence(*pair) for pair in pairs]
        # The longest first: what does not fit into memory shows at once, and neighbours have about the same length.
        order = sorted(range(len(pairs)), key=lambda i: -len(sequences[i]))
        scores: dict[int, Score] = {}
        with jax.set_mesh(self._run.mesh), tqdm(total=len(pairs), unit=" scores", disable=not progress) as bar:
            for start in range(0, len(order), self._batch_size):
                chosen = order[start : start + self._batch_size]
                rows = [(sequences[i], len(pairs[i][1])) for i in chosen]
                batch = put_batch(self._batch(rows), self._sharding)
                logprobs, greedy = jax.device_get(self._scores(self._run.params, batch))
                for i, logprob, is_greedy in zip(chosen, logprobs, greedy, strict=False):
                    scores[i] = Score(float(logprob), bool(is_greedy))
                bar.update(len(chosen))
        return [scores[i] for i in range(len(pairs))]

    def _sequence(self, context: Sequence[int], continuation: Sequence[int]) -> list[int]:
        if not len(context):
            raise UserError("context: is empty; give at least the token that texts begin with")
        if len(continuation) > self.max_length:
            raise UserError(f"continuation: of {len(continuation)} tokens; the window has {self.max_length}")
        return [*context, *continuation][-(self.max_length + 1) :]

    def _batch(self, rows: Sequence[tuple[Sequence[int], int]]) -> dict[str, np.ndarray]:
        """Rows of one length, among few: inputs and targets of a window, and the targets that count."""
        longest = max(len(ids) for ids, _ in rows) - 1
        length = min(max(power_of_two(longest), _SHORTEST), self.max_length)
        tokens = np.full((self._batch_size, length + 1), self._run.tokenizer.pad_id, np.int32)
        counts = np.zeros((self._batch_size, length), np.bool_)
        for row, (ids, n) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            counts[row, len(ids) - 1 - n : len(ids) - 1] = True
        return {"tokens": tokens, "counts": counts}


def _scores(network: Network, params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Sums of log-probabilities (B,) over the targets that count, and whether all of them are the most probable."""
    model = network.merge(params)
    x_BxLxD, _, _ = model.hidden(batch["tokens"][:, :-1])  # padding is at the end, where no token sees it
    kernel_DxV, bias_V = model.head_kernel()

    def of_position(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_BxD, target_B = inputs
        logits_BxV = jnp.dot(x_BxD, kernel_DxV.astype(x_BxD.dtype), preferred_element_type=jnp.float32)
        logits_BxV += 0.0 if bias_V is None else bias_V
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), target_B[:, None], axis=1)[:, 0]
        return logp_B, logits_BxV.argmax(1) == target_B

    by_position = (x_BxLxD.swapaxes(0, 1), batch["tokens"][:, 1:].T)
    logp_LxB, hit_LxB = jax.lax.map(of_position, by_position, batch_size=_POSITIONS_AT_ONCE)
    counts_LxB = batch["counts"].T
    return jnp.sum(logp_LxB, axis=0, where=counts_LxB), jnp.all(hit_LxB | ~counts_LxB, axis=0)
