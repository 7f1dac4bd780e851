"""Choice of the next token: filters on hand-made logits and against a sorting reference, draws by frequency."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psann_jax.ops import kernels
from psann_jax.sample.next_token import (
    alternatives,
    draw,
    filtered_weights,
    look_up,
    next_token,
    score,
    threshold,
    threshold_by_bisection,
    threshold_by_digits,
)
from psann_jax.sample.settings import UNFILTERED, Sampling

choose = jax.jit(next_token)
weigh = jax.jit(filtered_weights)
FINDERS = [jax.jit(threshold_by_bisection), jax.jit(threshold_by_digits)]


def logits_of(*probabilities):
    return jnp.log(jnp.array([probabilities], jnp.float32))


def kept(probabilities, **fields):
    """The tokens that the filters keep."""
    weights = weigh(logits_of(*probabilities), replace(UNFILTERED, **fields).scalars())
    return np.flatnonzero(weights[0]).tolist()


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def chosen(logits, sampling, seen=None, seed=0):
    logits = jnp.asarray(logits, jnp.float32)
    seen = jnp.zeros(logits.shape, bool) if seen is None else jnp.asarray(seen)
    tokens, logprobs = choose(logits, seen, keys(len(logits), seed), sampling.scalars())
    return np.asarray(tokens), np.asarray(logprobs)


def test_temperature_0_takes_the_first_most_probable_token_regardless_of_filters():
    logits = [[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 2.0, 3.0], [-4.0, -3.0, -2.0, -1.0]]
    tokens, _ = chosen(logits, Sampling(temperature=0, top_k=1, top_p=0.1, min_p=0.5))
    np.testing.assert_array_equal(tokens, [1, 0, 3])


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
    logits = jnp.array([[1.0, -2.0, 0.5, 7.0]])
    weights = weigh(logits, replace(UNFILTERED, temperature=temperature).scalars())
    np.testing.assert_allclose(weights[0] / weights.sum(), jax.nn.softmax(logits[0] / temperature), rtol=1e-5)


def test_a_tiny_temperature_is_greedy_and_finite():
    tokens, _ = chosen([[1.0, 1.001, -50.0]], Sampling(temperature=1e-30))
    np.testing.assert_array_equal(tokens, [1])


@pytest.mark.parametrize(
    "fields",
    [
        *({"temperature": t} for t in (5e-324, 1e-45, 1e-40, 1.17e-38, 1.2e-38, 1e-30)),
        *({"top_p": p} for p in (5e-324, 1e-45, 1e-40, 1e-30)),
        *({"min_p": p} for p in (1.0, 1 - 1e-16, 1 - 1e-9)),
    ],
    ids=str,
)
def test_the_smallest_values_take_the_most_probable_token(fields):
    """Also those that float32 or the device rounds to 0."""
    for seed in range(8):
        tokens, logprobs = chosen([[0.1, 5.0, 5.5, -3.0]], replace(UNFILTERED, **fields), seed=seed)
        assert (tokens.tolist(), np.isfinite(logprobs).all()) == ([2], True)


@pytest.mark.parametrize("temperature", [1e30, 3.5e38, 1e300])
def test_the_greatest_temperatures_draw_all_tokens_alike(temperature):
    sampling = replace(UNFILTERED, temperature=temperature)
    tokens, _ = chosen([[0.1, 5.0, 5.5, -300.0]] * 400, sampling)
    assert (np.bincount(tokens, minlength=4) > 60).all()


@pytest.mark.parametrize("filters", [{}, {"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.5}, {"temperature": 0}], ids=str)
def test_extreme_penalties_stay_finite(filters):
    logits, sampling = [[0.0, 5.0, 5.5, -3.0]], replace(UNFILTERED, **filters)
    for penalty in (5e-324, 1e-45, 1e-38, 1e-30):
        tokens, _ = chosen(logits, replace(sampling, repetition_penalty=penalty), [[False, True, False, False]])
        assert tokens.tolist() == [1]
    for penalty in (1e30, 3.5e38, 1e300):
        tokens, _ = chosen(logits, replace(sampling, repetition_penalty=penalty), [[True, False, True, True]])
        assert tokens.tolist() == [1] or (not filters and tokens[0] in (0, 2))


def test_top_k_keeps_k_and_the_ties_of_the_kth():
    assert kept((0.4, 0.3, 0.2, 0.1), top_k=2) == [0, 1]
    assert kept((0.2, 0.2, 0.2, 0.4), top_k=2) == [0, 1, 2, 3]
    assert kept((0.4, 0.3, 0.2, 0.1), top_k=0) == [0, 1, 2, 3]
    assert kept((0.4, 0.3, 0.2, 0.1), top_k=2**40) == [0, 1, 2, 3]


def test_top_p_keeps_the_token_that_reaches_p():
    assert kept((0.5, 0.3, 0.2), top_p=0.7) == [0, 1]
    assert kept((0.5, 0.3, 0.2), top_p=0.45) == [0]
    assert kept((0.2, 0.3, 0.5), top_p=0.81) == [0, 1, 2]
    assert kept((0.2, 0.3, 0.5), top_p=1.0) == [0, 1, 2]
    assert kept((0.1, 0.1, 0.8), top_p=0.85) == [0, 1, 2], "equally probable tokens stay together"


def test_top_p_acts_on_the_tokens_that_top_k_keeps():
    # The first token has 0.57 of the probability of the first two, but 0.4 of all four.
    assert kept((0.4, 0.3, 0.2, 0.1), top_p=0.5) == [0, 1]
    assert kept((0.4, 0.3, 0.2, 0.1), top_k=2, top_p=0.5) == [0]


def test_min_p_is_relative_to_the_most_probable_token():
    assert kept((0.5, 0.3, 0.15, 0.05), min_p=0.4) == [0, 1]
    assert kept((0.5, 0.3, 0.15, 0.05), min_p=0.25) == [0, 1, 2]
    assert kept((0.5, 0.3, 0.15, 0.05), min_p=1.0) == [0]


def test_filters_follow_the_temperature():
    assert kept((0.5, 0.3, 0.2), top_p=0.45, temperature=100.0) == [0, 1]
    assert kept((0.5, 0.3, 0.2), min_p=0.5, temperature=0.1) == [0]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits, seen = [[3.0, 2.0, -1.0, -2.4]], [[True, False, True, False]]
    greedy = {"temperature": 0.0}
    assert chosen(logits, Sampling(**greedy, repetition_penalty=1.4), seen)[0] == [0]  # 2.14 against 2
    assert chosen(logits, Sampling(**greedy, repetition_penalty=1.6), seen)[0] == [1]  # 1.88 against 2
    negative = [[-1.0, -1.9, -9.0, -9.0]]
    assert chosen(negative, Sampling(**greedy, repetition_penalty=1.8), seen)[0] == [0]
    assert chosen(negative, Sampling(**greedy, repetition_penalty=2.0), seen)[0] == [1]


@pytest.mark.parametrize("offset", [0.0, 300.0, -1e4, 1e5])
def test_logprobs_have_all_digits_at_large_logits(offset):
    logits = (offset + np.random.default_rng(0).integers(-64, 65, (4, 50)) / 16).astype(np.float32)
    tokens, logprobs = chosen(logits, UNFILTERED)
    exact = jax.nn.log_softmax(logits - offset)[np.arange(4), tokens]  # logits are multiples of 1/16
    np.testing.assert_allclose(logprobs, exact, rtol=1e-6)


def test_the_logprob_of_a_near_certain_token_is_not_rounded_to_zero():
    _, logprobs = chosen([[500.0, 500.0 - 13.0]], Sampling(temperature=0))
    np.testing.assert_allclose(logprobs, -np.exp(-13.0), rtol=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_finite_logits_have_no_token(bad):
    rows = [[bad] * 3, [0.0, 1.0, 0.0], [0.0, bad, 1.0]]
    tokens, logprobs = chosen(rows, Sampling(temperature=0))
    np.testing.assert_array_equal(tokens, [3, 1, 2 if bad == -np.inf else 3])
    assert np.isfinite(logprobs[tokens < 3]).all()


def test_logprobs_are_those_of_the_unfiltered_logits():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    seen = np.ones((3, 50), bool)
    tokens, logprobs = chosen(logits, Sampling(temperature=0.5, top_k=3, repetition_penalty=2.0), seen)
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[np.arange(3), tokens], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_give_no_token(temperature):
    logits = [[1.0, np.nan, 0.0], [1.0, 2.0, 0.0], [np.inf, 0.0, 0.0], [-np.inf, 3.0, -np.inf]]
    tokens, _ = chosen(logits, Sampling(temperature=temperature, top_k=2, top_p=0.1))
    np.testing.assert_array_equal(tokens, [3, 1, 3, 1])


# --- against sorting ------------------------------------------------------------------------------------


def sorted_reference(logits, temperature, top_k, top_p, min_p):
    """The tokens to keep, found by sorting."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    if 0 < top_k < len(p):
        p = np.where(logits >= np.sort(logits)[-top_k], p, 0)
    order = np.argsort(-logits, kind="stable")
    reached = np.flatnonzero(np.cumsum(p[order]) >= top_p * p.sum())
    least = logits[order[reached[0]]] if len(reached) and top_p < 1 else -np.inf
    return (p > 0) & (logits >= least) & (p >= min_p * p.max())


def logit_rows(sizes):
    """Rows with ties, zeros of both signs, tiny and large values."""
    chosen = st.sampled_from([0.0, -0.0, 1.0, 1e-30, -1e-30, 1.0000001])
    # XLA flushes subnormal numbers to zero, and the midpoint of 0 and the smallest normal number is subnormal.
    values = st.floats(-30, 30, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-37) | chosen
    return st.lists(values, min_size=1, max_size=sizes).map(lambda row: np.array(row, np.float32))


@settings(max_examples=150, deadline=None)
@given(
    row=logit_rows(40),
    temperature=st.floats(0.125, 5, width=32),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.015625, 1, width=32),
    min_p=st.floats(0, 1, width=32),
)
def test_filters_equal_the_sorting_reference(row, temperature, top_k, top_p, min_p):
    padded = np.full((1, 40), -np.inf, np.float32)
    padded[0, : len(row)] = row
    weights = np.asarray(weigh(padded, Sampling(temperature, top_k, top_p, min_p).scalars()))[0, : len(row)]
    # Rounding may put a sum or a quotient on either side of its bound.
    least = sorted_reference(row, temperature, top_k, top_p * (1 - 1e-5), min(min_p * (1 + 1e-5), 1))
    most = sorted_reference(row, temperature, top_k, min(top_p * (1 + 1e-5), 1), min_p * (1 - 1e-5))
    assert (least <= (weights > 0)).all()
    representable = np.exp((row.astype(np.float64) - row.max()) / temperature) > 1e-37
    assert ((weights > 0) <= most)[representable].all()


@settings(max_examples=100, deadline=None)
@given(row=logit_rows(30), k=st.integers(1, 30))
@example(row=np.array([2.0, 1.0, 1.0000001], np.float32), k=4)
def test_thresholds_are_exactly_the_kth_largest_element(row, k):
    padded = np.full((2, 30), -np.inf, np.float32)
    padded[0, : len(row)] = row
    padded[1] = np.arange(30)
    for find in FINDERS:
        found = find(padded, np.ones((2, 30), np.float32), np.full(2, k, np.float32))
        assert found[0] == np.sort(row)[-min(k, len(row))]
        assert found[1] == 30 - k


@settings(max_examples=60, deadline=None)
@given(row=logit_rows(30), k=st.integers(1, 30), eighths=st.integers(1, 8))
@example(row=np.array([0.0, -0.0, -1.0, -0.0], np.float32), k=2, eighths=3)
@example(row=np.array([3.0, 3.0, 3.0, 1.0], np.float32), k=2, eighths=5)
def test_digits_find_what_bisection_finds(row, k, eighths):
    """Also for sums that some, all or no elements reach, and for equal elements."""
    x = np.full((2, 30), -np.inf, np.float32)
    x[:, : len(row)] = row
    weights = np.array([x[0] > -np.inf, np.arange(30) % 3], np.float32)  # sums of whole numbers have no rounding
    for target in (np.full(2, k), eighths / 8 * weights.sum(axis=1), weights.sum(axis=1) + 1):
        a, b = (find(x, weights, target.astype(np.float32)) for find in FINDERS)
        np.testing.assert_array_equal(x >= a[:, None], x >= b[:, None])


def test_digits_are_chosen_on_gpus(monkeypatch):
    x = jnp.arange(6.0).reshape(1, 6)
    for platform, name in (("cpu", "bisection"), ("gpu", "digits"), ("tpu", "bisection")):
        monkeypatch.setattr(kernels, "platform", lambda platform=platform: platform)
        with kernels.recorded() as found:
            assert threshold(x, jnp.ones_like(x), jnp.array([2.0]))[0] == 4
        assert found == {"threshold": {name}}


# --- draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 128, 1000])
def test_draw_frequencies_follow_the_weights(size):
    n = 40000
    rng = np.random.default_rng(size)
    weights = rng.random(size).astype(np.float32) ** 4
    weights[rng.permutation(size)[: size // 3]] = 0
    drawn = np.asarray(jax.jit(draw)(jnp.broadcast_to(weights, (n, size)), keys(n)))
    p = weights / weights.sum()
    counts = np.bincount(drawn, minlength=size)
    assert (counts[weights == 0] == 0).all()
    deviation = (counts - n * p) / np.sqrt(n * p * (1 - p) + 1e-9)
    assert np.abs(deviation[p > 0]).max() < 5
    assert np.square(deviation[p > 0]).mean() < 1.5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_token_of_weight_0_is_ever_drawn(data):
    weights = np.zeros(300, np.float32)
    positive = data.draw(st.lists(st.integers(0, 299), min_size=1, max_size=5, unique=True))
    weights[positive] = data.draw(
        st.lists(st.sampled_from([1e-30, 1e-7, 1.0, 3.0]), min_size=len(positive), max_size=len(positive))
    )
    drawn = jax.jit(draw)(jnp.broadcast_to(weights, (200, 300)), keys(200, data.draw(st.integers(0, 1000))))
    assert set(np.asarray(drawn).tolist()) <= set(positive)


def test_look_up_returns_positive_weights_even_at_interval_ends():
    weights = np.broadcast_to(np.array([0, 0, 2, 0, 1, 0], np.float32), (5, 6))
    index, rest = look_up(weights, np.array([0.0, 1.5, 2.0, 2.5, 3.0], np.float32))
    np.testing.assert_array_equal(index, [2, 2, 4, 4, 4])
    np.testing.assert_array_equal(rest, [0.0, 1.5, 0.0, 0.5, 1.0])


def test_a_row_depends_on_its_own_key_only():
    logits = np.random.default_rng(1).normal(size=(4, 200)).astype(np.float32)
    sampling = Sampling(temperature=2.0, top_k=50, top_p=0.95)
    together, _ = chosen(logits, sampling)
    order = [2, 0, 3, 1]
    seen = jnp.zeros(logits.shape, bool)
    reordered, _ = choose(jnp.asarray(logits[order]), seen, keys(4)[jnp.array(order)], sampling.scalars())
    np.testing.assert_array_equal(reordered, together[order])
    assert (chosen(np.repeat(logits[:1], 50, axis=0), sampling)[0] != together[0]).any(), "keys must matter"


def test_changed_settings_do_not_recompile():
    fresh = jax.jit(lambda *args: next_token(*args))
    logits = np.zeros((2, 10), np.float32)
    for sampling in (
        UNFILTERED,
        Sampling(),
        Sampling(0.0),
        Sampling(0.5, 3, 0.9, 0.1, 1.2),
        Sampling(temperature=2, top_k=1),
    ):
        fresh(logits, logits > 1, keys(2), sampling.scalars())
    assert fresh._cache_size() == 1


# --- settings of each row ---------------------------------------------------------------------------------


def test_settings_of_each_row_equal_the_same_settings_for_all():
    rng = np.random.default_rng(3)
    logits = jnp.asarray(3 * rng.normal(size=(6, 500)), jnp.float32)
    seen = jnp.asarray(rng.random((6, 500)) < 0.2)
    settings = [Sampling(0.0), Sampling(), Sampling(0.7, 5, 0.8, 0.01, 1.3), Sampling(1.5, 0, 1.0), UNFILTERED]
    settings.append(Sampling(0.0, repetition_penalty=9.0))
    rows = [one.scalars() for one in settings]
    stacked = Sampling(**{f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(Sampling)})
    tokens, logprobs = choose(logits, seen, keys(6), stacked)
    for i, one in enumerate(settings):
        expected, of_expected = choose(logits, seen, keys(6), one.scalars())
        assert tokens[i] == expected[i]
        assert logprobs[i] == of_expected[i]


def test_alternatives_are_the_most_probable_tokens_in_order():
    logits = np.array([[0, 2, 1, 2, -np.inf], [5, 4, 3, 2, 1]], np.float32)
    tokens, logprobs = alternatives(jnp.asarray(logits), 3)
    assert tokens.tolist() == [[1, 3, 2], [0, 1, 2]], "of equal ones, the lowest id first"
    expected = np.take_along_axis(logits - np.logaddexp.reduce(logits, -1, keepdims=True), np.asarray(tokens), -1)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)


def test_a_score_is_the_same_number_as_that_of_the_alternative():
    logits = 5 * np.random.default_rng(0).normal(size=(200, 37)).astype(np.float32)
    tokens = np.concatenate([logits.argmax(-1)[:100], np.arange(100) % 37]).astype(np.int32)
    logprobs, top, of_top = jax.jit(score, static_argnums=2)(jnp.asarray(logits), jnp.asarray(tokens), 4)
    exact = logits.astype(np.float64)
    expected = exact - np.logaddexp.reduce(exact, -1, keepdims=True)
    np.testing.assert_allclose(logprobs, np.take_along_axis(expected, tokens[:, None], -1)[:, 0], rtol=1e-5, atol=1e-6)
    for token, value, others, values in zip(tokens, logprobs, np.asarray(top), np.asarray(of_top), strict=True):
        assert token not in others or value == values[list(others).index(token)]
    np.testing.assert_array_equal(top, alternatives(jnp.asarray(logits), 4)[0])


def test_a_score_of_logits_that_are_not_finite_is_nan():
    logits = jnp.array([[0.0, jnp.nan, 1.0], [0.0, jnp.inf, 1.0], [0.0, 1.0, 2.0]])
    logprobs, *_ = score(logits, jnp.array([0, 1, 2]), 1)
    assert np.isnan(logprobs).tolist() == [True, True, False]
