"""The choice of the next token from its logits.

The steps, in this order: repetition penalty, temperature, top-k, top-p, min-p, draw. Top-p sees what top-k has left,
renormalised; min-p compares with the most probable token and so may come anywhere after the temperature.

Nothing here sorts: XLA's sort takes 20 ms for 8 x 16384 logits on a CPU, ten times the rest of a decoding step. A
filter is a threshold, found by bisection; a draw is an inverse cumulative sum in two levels.
"""

import math
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from psann_jax.config import require

_GROUP = 128  # weights summed as one in the first level of a draw
_HALVINGS = 4  # of a bracket before it is looked into
_MOST_ROUNDS = 40  # 160 halvings take any bracket down to neighbouring normal numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. All fields are traced: another value compiles nothing anew.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token (the first of equals), filters have no effect.
      top_k: the k most probable tokens are left, and those that are as probable as the k-th; 0: all.
      top_p: the most probable tokens are left whose sum first reaches this share, the one that reaches it included, and
        those as probable as that one; 1: all. Source: Holtzman et al. (2020).
      min_p: tokens at least this share as probable as the most probable one are left; 0: all. Source: Nguyen et al.
        (2024).
      repetition_penalty: divides positive and multiplies negative logits of tokens that are in the row already, prompt
        or produced, however often; 1: none. Source: CTRL, Keskar et al. (2019).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Raises ConfigError on the first value that cannot be used; the message begins with the field's name."""
        t, penalty = self.temperature, self.repetition_penalty
        require(0 <= t < math.inf, "temperature", f"is {t}, must be 0 (the most probable token) or above")
        require(self.top_k >= 0, "top_k", f"is {self.top_k}, must be 0 (all tokens) or above")
        require(0 < self.top_p <= 1, "top_p", f"is {self.top_p}, must be above 0 and at most 1 (all tokens)")
        require(0 <= self.min_p <= 1, "min_p", f"is {self.min_p}, must be between 0 (all tokens) and 1")
        require(0 < penalty < math.inf, "repetition_penalty", f"is {penalty}, must be positive; 1 is none")

    def scalars(self) -> Self:
        """The same as numpy scalars of fixed types, to be traced."""
        top_k = min(self.top_k, np.iinfo(np.int32).max)
        floats = (np.float32(v) for v in (self.temperature, self.top_p, self.min_p, self.repetition_penalty))
        temperature, top_p, min_p, penalty = floats
        return type(self)(temperature, np.int32(top_k), top_p, min_p, penalty)  # type: ignore[arg-type]


def next_token(
    logits_BxV: jax.Array, seen_BxV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Chooses a token for every row, each on its own.

    Args:
      logits_BxV: float.
      seen_BxV: bool, the tokens that the repetition penalty is for.
      keys_B: random keys, one a row; a row's choice depends on its own key only.
      sampling: what to do.

    Returns:
      tokens_B, int32, V where a row's logits are not finite; and logprobs_B, float32, the natural logarithms of their
      probabilities by the logits as given, before penalty, temperature and filters.
    """
    logits = logits_BxV.astype(jnp.float32)
    scores = _penalised(logits, seen_BxV, sampling.repetition_penalty)
    best_B = jnp.max(scores, axis=-1)

    def most_probable() -> jax.Array:
        # XLA's CPU argmax is not vectorised; two plain reductions are ten times as fast.
        index = jnp.arange(scores.shape[-1], dtype=jnp.int32)
        return jnp.min(jnp.where(scores == best_B[:, None], index, scores.shape[-1]), axis=-1)

    def drawn() -> jax.Array:
        return draw(filtered_weights(scores, sampling), keys_B)

    tokens_B = lax.cond(sampling.temperature > 0, drawn, most_probable)
    tokens_B = jnp.where(jnp.isfinite(best_B), tokens_B, scores.shape[-1])
    chosen_Bx1 = jnp.take_along_axis(logits, tokens_B[:, None], axis=-1, mode="clip")
    return tokens_B, chosen_Bx1[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def _penalised(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: float) -> jax.Array:
    changed = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
    return jnp.where(seen_BxV, changed, logits_BxV)


def filtered_weights(scores_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Probabilities times a factor that each row has of its own, after temperature and filters.

    Args:
      scores_BxV: logits after the repetition penalty, float32.
      sampling: what to do; a temperature above 0.

    Returns:
      (B, V), 1 for the most probable token, 0 for those that are filtered out.
    """
    best_Bx1 = jnp.max(scores_BxV, axis=-1, keepdims=True)
    weights = jnp.exp((scores_BxV - best_Bx1) / sampling.temperature)

    def top_k() -> jax.Array:
        at_least = threshold(scores_BxV, jnp.ones_like(scores_BxV), jnp.full(len(scores_BxV), sampling.top_k, float))
        return jnp.where(scores_BxV >= at_least[:, None], weights, 0)

    limited = (sampling.top_k > 0) & (sampling.top_k < scores_BxV.shape[-1])
    weights = lax.cond(limited, top_k, lambda: weights)

    def top_p() -> jax.Array:
        at_least = threshold(scores_BxV, weights, sampling.top_p * jnp.sum(weights, axis=-1))
        return jnp.where(scores_BxV >= at_least[:, None], weights, 0)

    weights = lax.cond(sampling.top_p < 1, top_p, lambda: weights)
    return jnp.where(weights >= sampling.min_p, weights, 0)


def threshold(x_BxV: jax.Array, weights_BxV: jax.Array, target_B: jax.Array) -> jax.Array:
    """The greatest element t of each row for which the weights of the elements x >= t sum to the target.

    Bisection: the weights are summed for the middle of a bracket until all elements in the bracket are equal, or
    nearer to each other than the smallest normal number.

    Args:
      x_BxV: float32; -inf is no element.
      weights_BxV: not negative.
      target_B: what the sum must reach; where all the weights do not, the result is the least element.
    """

    def halve(low_B: jax.Array, high_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle_B = low_B / 2 + high_B / 2
        reached_B = jnp.sum(jnp.where(x_BxV >= middle_B[:, None], weights_BxV, 0), axis=-1) >= target_B
        reached_B |= middle_B <= low_B  # what is at the low end stays in
        return jnp.where(reached_B, middle_B, low_B), jnp.where(reached_B, high_B, middle_B)

    def halve_often(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, low_B, high_B, *_ = carry
        for _ in range(_HALVINGS):
            low_B, high_B = halve(low_B, high_B)
        inside = (x_BxV >= low_B[:, None]) & (x_BxV < high_B[:, None])
        least_B = jnp.min(jnp.where(inside, x_BxV, jnp.inf), axis=-1)
        return count + 1, low_B, high_B, least_B, jnp.max(jnp.where(inside, x_BxV, -jnp.inf), axis=-1)

    def undecided(carry: tuple[jax.Array, ...]) -> jax.Array:
        count, _, _, least_B, greatest_B = carry
        return jnp.any(least_B < greatest_B) & (count < _MOST_ROUNDS)

    least_B = jnp.min(jnp.where(x_BxV > -jnp.inf, x_BxV, jnp.inf), axis=-1)
    greatest_B = jnp.max(x_BxV, axis=-1)
    # The low end reaches the target, or is the least element; the high end is above all elements.
    carry: tuple[jax.Array, ...] = (jnp.zeros((), jnp.int32), least_B, 2 * jnp.abs(greatest_B) + 1, least_B, greatest_B)
    return lax.while_loop(undecided, halve_often, carry)[-2]


def draw(weights_BxV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Draws an index of each row in proportion to the weights, of which at least one must be positive.

    One uniform number a row is looked up in the cumulative sum of groups, then within its group. An index of weight 0
    is never drawn.
    """
    n_groups = math.ceil(weights_BxV.shape[-1] / _GROUP)
    padded = jnp.pad(weights_BxV, ((0, 0), (0, n_groups * _GROUP - weights_BxV.shape[-1])))
    groups_BxGxN = padded.reshape(-1, n_groups, _GROUP)
    sums_BxG = jnp.sum(groups_BxGxN, axis=-1)
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    group_B, rest_B = look_up(sums_BxG, uniform_B * jnp.sum(sums_BxG, axis=-1))
    within_BxN = jnp.take_along_axis(groups_BxGxN, group_B[:, None, None], axis=1)[:, 0]
    index_B, _ = look_up(within_BxN, rest_B)
    return group_B * _GROUP + index_B


def look_up(weights_BxN: jax.Array, at_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the cumulative sum of the weights first exceeds `at`.

    Args:
      weights_BxN: not negative, at least one of each row positive.
      at_B: from 0 to the sum.

    Returns:
      The index, always of a positive weight, and how far `at` is into that weight.
    """
    ends = jnp.cumsum(weights_BxN, axis=-1)
    positive = weights_BxN > 0
    beyond = (ends > at_B[:, None]) & positive
    index = jnp.arange(weights_BxN.shape[-1], dtype=jnp.int32)
    # By rounding, the last end can lie a little below the sum that `at` is a share of.
    last = jnp.max(jnp.where(positive, index, 0), axis=-1)
    first = jnp.min(jnp.where(beyond, index, last[:, None]), axis=-1)
    before = jnp.where(first > 0, jnp.take_along_axis(ends, jnp.maximum(first - 1, 0)[:, None], axis=-1)[:, 0], 0)
    return first, at_B - before
