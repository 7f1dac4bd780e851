"""Continuous batching: rows that begin and end at any time equal those generated alone, and nothing recompiles."""

import numpy as np
import pytest

from psann_jax.sample.generation import generate
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Sampling
from psann_jax.sample.slots import SlotRow, Slots
from psann_jax.utils.errors import UserError
from tests.sample.test_sampler import ATOL, CONTEXT, GREEDY, RTOL, Compilations, made, prompts_of

N_TOP = 3
KINDS = ("waveresnet_dilated", "sgrpsann", "ngt", "vanilla", "transformer")  # of caches


def slots_of(name, n_slots=3, eos_id=2):
    it = made(name)
    sampler = Sampler(it.network, it.params, eos_id=eos_id, max_length=CONTEXT, n_alternatives=N_TOP)
    return it, Slots(sampler, n_slots)


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
