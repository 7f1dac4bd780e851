"""Choice of the next token from its logits.

The steps, in order: repetition penalty, temperature, top-k, top-p, min-p, draw. Top-p acts on the renormalised
probabilities of the tokens that top-k keeps. Min-p compares with the most probable token, so its position after the
temperature does not matter.

Nothing here sorts: XLA's sort takes 20 ms for 8 x 16384 logits on a CPU, ten times the rest of a decoding step, and
many kernels on a GPU. A filter is a threshold found by bisection; a draw is a two-level search in the cumulative sum.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from psann_jax.ops import kernels
from psann_jax.sample.settings import Sampling

_GROUP = 128  # weights that the first level of a draw adds up
_HALVINGS = 4  # bisection steps between two looks at the elements inside the bracket
_MAX_SCORE = float(np.finfo(np.float32).max) / 4  # after the repetition penalty
_MAX_ROUNDS = 40  # 160 halvings shrink any bracket to neighbouring normal numbers
_DIGIT = 4
_SIGN = np.uint32(2**31)


jax.tree_util.register_dataclass(Sampling)


def next_token(
    logits_BxV: jax.Array,
    seen_BxV: jax.Array,
    keys_B: jax.Array,
    sampling: Sampling,
    adjust: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses a token for every row independently.

    Args:
      logits_BxV: float.
      seen_BxV: bool, the tokens that the repetition penalty applies to.
      keys_B: one random key per row; a row's choice depends on its own key only.
      sampling: how to choose; each of its fields is one number, or one for every row (B,).
      adjust: changes the logits (B, V) after the repetition penalty; None: does not.

    Returns:
      tokens_B, int32, with V where a row's logits are not finite; and logprobs_B, float32, the natural logarithm of
      the chosen tokens' probabilities before penalty, temperature and filters.
    """
    logits = logits_BxV.astype(jnp.float32)
    scores = _penalised(logits, seen_BxV, sampling.repetition_penalty)
    scores = scores if adjust is None else adjust(scores)
    best_B = jnp.max(scores, axis=-1)

    def most_probable() -> jax.Array:
        # XLA's CPU argmax is not vectorised; two plain reductions are ten times as fast.
        index = jnp.arange(scores.shape[-1], dtype=jnp.int32)
        return jnp.min(jnp.where(scores == best_B[:, None], index, scores.shape[-1]), axis=-1)

    def drawn() -> jax.Array:
        return draw(filtered_weights(scores, sampling), keys_B)

    is_drawn = jnp.asarray(sampling.temperature) > 0

    def ignored() -> jax.Array:
        return jnp.zeros(scores.shape[:1], jnp.int32)

    drawn_B = lax.cond(jnp.any(is_drawn), drawn, ignored)
    tokens_B = jnp.where(is_drawn, drawn_B, lax.cond(jnp.all(is_drawn), ignored, most_probable))
    largest_B = jnp.max(logits, axis=-1)  # NaN if any logit is
    tokens_B = jnp.where(jnp.isfinite(largest_B), tokens_B, scores.shape[-1])
    return tokens_B, _logprobs(logits, largest_B, tokens_B)


def _logprobs(logits_BxV: jax.Array, largest_B: jax.Array, tokens_B: jax.Array) -> jax.Array:
    chosen_Bx1 = jnp.take_along_axis(logits_BxV, tokens_B[:, None], axis=-1, mode="clip")
    # Differences first: logsumexp would round the sum to the digits of the largest logit.
    sum_B = jnp.sum(jnp.exp(logits_BxV - largest_B[:, None]), axis=-1)
    return (chosen_Bx1[:, 0] - largest_B) - jnp.log(sum_B)


def score(logits_BxV: jax.Array, tokens_B: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the log-probabilities of given tokens, and the n >= 1 most probable ones.

    Returns:
      logprobs_B, float32, NaN where a row's logits are not finite; and the results of `alternatives`. The value of a
      token that is among these is the same number, so that comparing the two finds it.
    """
    logits = logits_BxV.astype(jnp.float32)
    logprobs_B = _logprobs(logits, jnp.max(logits, axis=-1), tokens_B)
    top_tokens_BxN, top_logprobs_BxN = alternatives(logits, n)
    is_token = top_tokens_BxN == tokens_B[:, None]
    among_B = jnp.sum(jnp.where(is_token, top_logprobs_BxN, 0), axis=-1)
    return jnp.where(jnp.any(is_token, axis=-1), among_B, logprobs_B), top_tokens_BxN, top_logprobs_BxN


def alternatives(logits_BxV: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Finds the n most probable tokens of every row, by n passes over the logits instead of a sort.

    Returns:
      tokens_BxN, int32, the most probable first, of equal ones the one with the lowest id; and logprobs_BxN, float32.
    """
    logits = logits_BxV.astype(jnp.float32)
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)

    def find(rest_BxV: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best_B = jnp.max(rest_BxV, axis=-1)
        token_B = jnp.min(jnp.where(rest_BxV == best_B[:, None], index, len(index)), axis=-1)
        return jnp.where(index == token_B[:, None], -jnp.inf, rest_BxV), (token_B, best_B)

    _, (tokens_NxB, best_NxB) = lax.scan(find, logits, None, length=n)
    sum_B = jnp.sum(jnp.exp(logits - best_NxB[0][:, None]), axis=-1)
    return tokens_NxB.T, ((best_NxB - best_NxB[0]) - jnp.log(sum_B)).T


def _column(setting: jax.Array | float) -> jax.Array:
    """Shapes a setting, one number or one for every row, so that it broadcasts against (B, V)."""
    return jnp.reshape(jnp.asarray(setting), (-1, 1))


def _penalised(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: jax.Array | float) -> jax.Array:
    penalty = _column(penalty)
    changed = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
    # An extreme penalty must not make a score infinite; differences and doubles of scores stay finite, too.
    changed = jnp.clip(changed, -_MAX_SCORE, _MAX_SCORE)
    return jnp.where(seen_BxV, changed, logits_BxV)


def filtered_weights(scores_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns probabilities after temperature and filters, up to a factor per row.

    Args:
      scores_BxV: logits after the repetition penalty, float32.
      sampling: temperature and filters, each one number or one for every row; rows whose temperature is 0 have no
        meaning.

    Returns:
      Weights (B, V): 1 for the most probable token, 0 for filtered tokens.
    """
    best_Bx1 = jnp.max(scores_BxV, axis=-1, keepdims=True)
    temperature, k, p = (_column(value) for value in (sampling.temperature, sampling.top_k, sampling.top_p))
    weights = jnp.exp((scores_BxV - best_Bx1) / jnp.where(temperature > 0, temperature, 1))
    is_limited = (k > 0) & (k < scores_BxV.shape[-1])

    def top_k() -> jax.Array:
        target_B = jnp.broadcast_to(jnp.where(is_limited, k, 1)[:, 0].astype(float), scores_BxV.shape[:1])
        at_least = threshold(scores_BxV, jnp.ones_like(scores_BxV), target_B)
        return jnp.where(~is_limited | (scores_BxV >= at_least[:, None]), weights, 0)

    weights = lax.cond(jnp.any(is_limited), top_k, lambda: weights)

    def top_p() -> jax.Array:
        at_least = threshold(scores_BxV, weights, p[:, 0] * jnp.sum(weights, axis=-1))
        return jnp.where((p >= 1) | (scores_BxV >= at_least[:, None]), weights, 0)

    weights = lax.cond(jnp.any(p < 1), top_p, lambda: weights)
    return jnp.where(weights >= _column(sampling.min_p), weights, 0)


def threshold(x_BxV: jax.Array, weights_BxV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Returns each row's largest element t such that the weights of the elements x >= t sum to at least the target.

    Args:
      x_BxV: float32; elements of -inf are ignored.
      weights_BxV: non-negative.
      target_B: the sum to reach, positive; if all weights together do not reach it, the result is the smallest element.
    """
    # Bisection has fewer operations; but on a GPU its rounds, four to six, take 13 kernels and a message to the host
    # each, and the digits 26 kernels in all.
    digits = kernels.Candidate("digits", "" if kernels.platform() == "gpu" else "no faster", is_kernel=False)
    name = kernels.choose("threshold", digits, kernels.Candidate("bisection", is_kernel=False))
    find = threshold_by_digits if name == "digits" else threshold_by_bisection
    return find(x_BxV, weights_BxV, target_B)


def threshold_by_digits(x_BxV: jax.Array, weights_BxV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Finds `threshold` as an integer in the order of floats, beginning with its most significant digit."""
    keys_BxV = _sortable(x_BxV)
    found_B = jnp.zeros(x_BxV.shape[:1], jnp.uint32)
    for shift in range(32 - _DIGIT, -1, -_DIGIT):
        tried_BxN = found_B[:, None] | (jnp.arange(1, 2**_DIGIT, dtype=jnp.uint32) << shift)
        above_BxNxV = keys_BxV[:, None] >= tried_BxN[..., None]
        reached_BxN = jnp.sum(jnp.where(above_BxNxV, weights_BxV[:, None], 0), axis=-1) >= target_B[:, None]
        digit_B = jnp.max(jnp.where(reached_BxN, jnp.arange(1, 2**_DIGIT, dtype=jnp.uint32), 0), axis=-1)
        found_B |= digit_B << shift
    least_B = jnp.min(jnp.where(x_BxV > -jnp.inf, keys_BxV, ~jnp.uint32(0)), axis=-1)
    key_B = jnp.maximum(found_B, least_B)
    return lax.bitcast_convert_type(jnp.where(key_B >= _SIGN, key_B ^ _SIGN, ~key_B), jnp.float32)


def _sortable(x: jax.Array) -> jax.Array:
    """Maps float32 to uint32 in the same order."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # -0 is 0
    return jnp.where(bits >= _SIGN, ~bits, bits ^ _SIGN)


def threshold_by_bisection(x_BxV: jax.Array, weights_BxV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Finds `threshold` by halving a bracket around it.

    It ends when all elements inside the bracket are equal, or closer to each other than the smallest normal number.
    """

    def halve(low_B: jax.Array, high_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle_B = low_B / 2 + high_B / 2
        reached_B = jnp.sum(jnp.where(x_BxV >= middle_B[:, None], weights_BxV, 0), axis=-1) >= target_B
        reached_B |= middle_B <= low_B  # keeps the low end inside
        return jnp.where(reached_B, middle_B, low_B), jnp.where(reached_B, high_B, middle_B)

    def halve_repeatedly(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, low_B, high_B, *_ = carry
        for _ in range(_HALVINGS):
            low_B, high_B = halve(low_B, high_B)
        inside = (x_BxV >= low_B[:, None]) & (x_BxV < high_B[:, None])
        least_B = jnp.min(jnp.where(inside, x_BxV, jnp.inf), axis=-1)
        return count + 1, low_B, high_B, least_B, jnp.max(jnp.where(inside, x_BxV, -jnp.inf), axis=-1)

    def undecided(carry: tuple[jax.Array, ...]) -> jax.Array:
        count, _, _, least_B, greatest_B = carry
        return jnp.any(least_B < greatest_B) & (count < _MAX_ROUNDS)

    least_B = jnp.min(jnp.where(x_BxV > -jnp.inf, x_BxV, jnp.inf), axis=-1)
    greatest_B = jnp.max(x_BxV, axis=-1)
    # The low end reaches the target or is the smallest element; the high end is above all elements.
    carry: tuple[jax.Array, ...] = (jnp.zeros((), jnp.int32), least_B, 2 * jnp.abs(greatest_B) + 1, least_B, greatest_B)
    return lax.while_loop(undecided, halve_repeatedly, carry)[-2]


def draw(weights_BxV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Draws an index per row with probability proportional to its weight.

    One uniform number per row is looked up in the cumulative sum over groups, then within its group. An index of
    weight 0 is never drawn. At least one weight per row must be positive.
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
    """Finds where the cumulative sum of the weights first exceeds `at`.

    Args:
      weights_BxN: non-negative, at least one per row positive.
      at_B: between 0 and the row's sum.

    Returns:
      The index, always one with a positive weight, and how far `at` lies inside that weight.
    """
    ends = jnp.cumsum(weights_BxN, axis=-1)
    positive = weights_BxN > 0
    beyond = (ends > at_B[:, None]) & positive
    index = jnp.arange(weights_BxN.shape[-1], dtype=jnp.int32)
    # Rounding can put the last end slightly below the sum that `at` is a fraction of.
    last = jnp.max(jnp.where(positive, index, 0), axis=-1)
    first = jnp.min(jnp.where(beyond, index, last[:, None]), axis=-1)
    before = jnp.where(first > 0, jnp.take_along_axis(ends, jnp.maximum(first - 1, 0)[:, None], axis=-1)[:, 0], 0)
    return first, at_B - before
