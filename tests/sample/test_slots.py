"""Continuous batching: rows that begin and end at any time equal those generated alone, and nothing recompiles."""

import numpy as np
import pytest

from psann_jax.sample.generation import generate
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Adjustment, Sampling
from psann_jax.sample.slots import SlotRow, Slots
from psann_jax.utils.errors import UserError
from tests.sample.test_sampler import ATOL, CONTEXT, GREEDY, RTOL, Compilations, made, prompts_of

N_TOP = 3
KINDS = ("waveresnet_dilated", "sgrpsann", "ngt", "vanilla", "transformer")  # of caches


def slots_of(name, n_slots=3, eos_id=2):
    it = made(name)
    options = {"max_length": CONTEXT, "n_alternatives": N_TOP, "has_adjustments": True}
    return it, Slots(Sampler(it.network, it.params, eos_id=eos_id, **options), n_slots)


@pytest.fixture(scope="module")
def ready():
    """A model and its slots, compiled."""
    it, slots = slots_of("waveresnet_dilated")
    slots.warm_up()
    return it, slots


def run(slots, rows, steps=(3,)):
    """Runs rows through the slots, each as soon as one is free; returns them."""
    waiting, turn = list(rows), 0
    while waiting or len(slots.free) < len(slots.rows):
        for slot in slots.free:
            if waiting:
                slots.begin(slot, waiting.pop(0))
        slots.advance(steps[turn % len(steps)])
        turn += 1
        for slot, row in enumerate(slots.rows):
            if row is not None and row.finish:
                slots.release(slot)
    return rows


SETTINGS = (GREEDY, Sampling(), Sampling(1.5, 7, 0.8, 0.01, 1.4), Sampling(0.7, top_p=1.0, min_p=0.1), Sampling(2.0, 4))


def mixed(seed=0):
    """Rows of all kinds of settings and lengths."""
    lengths = (1, 17, 30, 4, 9, 2, 23, 5)
    return [
        SlotRow(prompt, sampling=SETTINGS[i % len(SETTINGS)], limit=3 + 2 * i, seed=seed + i % 3, stream=i)
        for i, prompt in enumerate(prompts_of(*lengths, seed=seed))
    ]


@pytest.mark.parametrize("name", KINDS)
def test_greedy_rows_equal_full_forward_passes(name):
    it, slots = slots_of(name)
    rows = run(slots, [SlotRow(p, sampling=GREEDY, limit=12) for p in prompts_of(1, 6, 17, 34, 3)])
    for row in rows:
        tokens, logprobs = it.greedy(row.prompt, 12)
        assert row.tokens == tokens
        np.testing.assert_allclose(row.logprobs, logprobs, atol=ATOL, rtol=RTOL)


def test_a_row_does_not_depend_on_the_others_the_slot_or_the_moment(ready):
    _, slots = ready
    together = run(slots, mixed())
    alone = [run(slots, [row])[0] for row in mixed()]
    assert together == alone
    backwards = run(slots, mixed()[::-1], steps=(1, 5, 2))[::-1]
    assert [row.tokens for row in backwards] == [row.tokens for row in alone]


def test_a_row_equals_that_of_a_generation(ready):
    it, slots = ready
    for row in run(slots, mixed()):
        options = {"max_new_tokens": row.limit, "seed": row.seed, "streams": [row.stream]}
        (expected,) = generate(it.sampler, [row.prompt], row.sampling, **options)
        assert row.tokens == expected.tokens
        np.testing.assert_allclose(row.logprobs, expected.logprobs, atol=ATOL, rtol=RTOL)


def test_nothing_compiles_after_the_warm_up(ready):
    _, slots = ready
    with Compilations() as compilations:
        rows = mixed(seed=5)
        rows[2].n_alternatives = N_TOP
        rows[3].adjustment = Adjustment(1.0, 0.5, {5: 2.0})
        run(slots, rows)
    assert compilations.count == 0


def test_alternatives_are_those_of_the_full_forward_pass(ready):
    it, slots = ready
    rows = [
        SlotRow(p, sampling=SETTINGS[1], limit=8, n_alternatives=n)
        for p, n in zip(prompts_of(5, 9, 1), (3, 1, 0), strict=True)
    ]
    for row in run(slots, rows):
        if not row.n_alternatives:
            assert row.top == []
            continue
        logits = it.logits([*row.prompt, *row.tokens])[len(row.prompt) - 1 : -1]
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        order = np.argsort(-logprobs, axis=-1, kind="stable")[:, : row.n_alternatives]
        assert [[i for i, _ in top] for top in row.top] == order.tolist()
        found = [[value for _, value in top] for top in row.top]
        np.testing.assert_allclose(found, np.take_along_axis(logprobs, order, -1), atol=ATOL, rtol=RTOL)


# --- bias and penalties ---------------------------------------------------------------------------------

ADJUSTMENTS = (
    Adjustment(presence_penalty=3.0),
    Adjustment(frequency_penalty=2.0),
    Adjustment(presence_penalty=-0.5, frequency_penalty=0.7, logit_bias={5: 4.0, 7: -100.0}),
    Adjustment(logit_bias={9: 100.0}),
    None,
)


def adjusted_greedy(it, prompt, n, adjustment):
    """The most probable tokens with an adjustment, with a full forward pass for each, and their log-probabilities."""
    tokens, logprobs = [], []
    while len(tokens) < n and (not tokens or tokens[-1] != 2):
        logits = it.logits([*prompt, *tokens])[-1].astype(np.float64)
        counts = np.bincount(tokens, minlength=len(logits))
        scores = logits - adjustment.frequency_penalty * counts - adjustment.presence_penalty * (counts > 0)
        for i, bias in adjustment.logit_bias.items():
            scores[i] += bias
        tokens.append(int(scores.argmax()))
        logprobs.append(float(logits[tokens[-1]] - np.logaddexp.reduce(logits)))
    return tokens, logprobs


def test_adjusted_rows_equal_full_forward_passes(ready):
    it, slots = ready
    rows = [
        SlotRow(p, sampling=GREEDY, limit=14, adjustment=a)
        for p, a in zip(prompts_of(3, 9, 1, 20, 6), ADJUSTMENTS, strict=True)
    ]
    plain = [it.greedy(row.prompt, 14)[0] for row in rows]
    run(slots, rows)
    for row in rows:
        tokens, logprobs = adjusted_greedy(it, row.prompt, 14, row.adjustment or Adjustment())
        assert row.tokens == tokens
        np.testing.assert_allclose(row.logprobs, logprobs, atol=ATOL, rtol=RTOL)
    changed = [row.tokens != tokens for row, tokens in zip(rows, plain, strict=True)]
    assert changed[2:] == [True, True, False]
    assert 7 not in rows[2].tokens
    assert set(rows[3].tokens) == {9}


def test_an_adjustment_changes_no_other_row_and_not_the_next_one_in_its_slot(ready):
    _, slots = ready
    alone = [run(slots, [row])[0] for row in mixed()]
    rows = mixed()
    for row in rows[::2]:
        row.adjustment = Adjustment(2.0, 2.0, {4: -100.0})
    run(slots, rows)
    assert rows[1::2] == alone[1::2]
    assert run(slots, mixed()) == alone


# --- prompts that are scored ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_scores_of_a_prompt_are_those_of_the_full_forward_pass(name):
    it, slots = slots_of(name)
    prompts = prompts_of(1, 2, 17, 34)
    rows = [SlotRow(p, sampling=GREEDY, limit=5, n_alternatives=2, is_scored=True) for p in prompts]
    for row in run(slots, rows):
        logits = it.logits(row.prompt)[:-1]
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        own = np.take_along_axis(logprobs, np.array(row.prompt[1:], int)[:, None], -1)[:, 0]
        np.testing.assert_allclose(row.prompt_logprobs, own, atol=ATOL, rtol=RTOL)
        order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :2]
        assert [[i for i, _ in top] for top in row.prompt_top] == order.tolist()
        found = np.array([[value for _, value in top] for top in row.prompt_top]).reshape(-1, 2)
        np.testing.assert_allclose(found, np.take_along_axis(logprobs, order, -1), atol=ATOL, rtol=RTOL)
        tokens, _ = it.greedy(row.prompt, 5)
        assert row.tokens == tokens, "the text after a scored prompt is the same"


def test_scored_prompts_of_any_length_compile_nothing_and_do_not_depend_on_others(ready):
    _, slots = ready
    prompts = prompts_of(1, 5, 48, 30, 47)

    def rows(**options):
        limits = [min(6, 48 - len(p)) for p in prompts]
        return [SlotRow(p, limit=n, is_scored=True, **options) for p, n in zip(prompts, limits, strict=True)]

    with Compilations() as compilations:
        together = run(slots, rows())
    assert compilations.count == 0
    assert together == [run(slots, [row])[0] for row in rows()]
    assert [len(row.prompt_logprobs) for row in together] == [len(p) - 1 for p in prompts]
    assert (together[2].tokens, together[2].finish) == ([], "length"), "nothing is generated"


def test_a_prompt_whose_logits_are_not_finite_ends_its_row(ready):
    it, slots = ready
    damaged = {**it.params, "norm": {"scale": np.full_like(it.params["norm"]["scale"], np.nan)}}
    slots._sampler.update(damaged)
    (row,) = run(slots, [SlotRow([1, 5], limit=0, is_scored=True)])
    slots._sampler.update(it.params)
    assert row.finish == "error"
    assert "logits are not finite" in row.error


def test_a_slot_has_nothing_of_the_row_before(ready):
    """Neither its cache nor the tokens that the repetition penalty counts, also if it was released early."""
    _, slots = ready
    (expected,) = run(slots, [SlotRow([1, 5], sampling=Sampling(0, repetition_penalty=5.0), limit=9)])
    slots.begin(0, SlotRow(prompts_of(40)[0], limit=8))
    slots.advance(2)
    slots.release(0)
    (again,) = run(slots, [SlotRow([1, 5], sampling=Sampling(0, repetition_penalty=5.0), limit=9)])
    assert again == expected


def test_a_row_whose_logits_are_not_finite_ends_and_others_do_not(ready):
    it, slots = ready
    damaged = {**it.params, "norm": {"scale": np.full_like(it.params["norm"]["scale"], np.nan)}}
    slots._sampler.update(damaged)
    (row,) = run(slots, [SlotRow([1, 5], limit=4)])
    assert (row.finish, row.tokens) == ("error", [])
    assert "logits are not finite" in row.error
    slots._sampler.update(it.params)
    (row,) = run(slots, [SlotRow([1, 5], limit=4)])
    assert row.finish in ("length", "eos")


def test_errors(ready):
    it, slots = ready
    with pytest.raises(UserError, match="max_tokens: makes 50 tokens with the prompt, more than 48"):
        slots.begin(0, SlotRow([1] * 40, limit=10))
    with pytest.raises(UserError, match="max_length: is 49, must be from 2 to 48"):
        Slots(it.sampler, 1, 49)
