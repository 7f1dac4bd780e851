"""The decoding loop: tokens equal those of full forward passes, rows are independent, nothing recompiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.models import network as registry
from psann_jax.sample import generation as generation_module
from psann_jax.sample.generation import Generation, generate
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import Sampling
from psann_jax.utils.errors import UserError
from tests.support.variants import SIZES, quick_variants, variant

VOCAB, CONTEXT, EOS = SIZES["vocab_size"], 48, 2
GREEDY = Sampling(temperature=0)
ATOL = RTOL = 1e-5


def random_params(network, seed=0):
    """Random values for all parameters, drawn without compiling anything."""
    rng = np.random.default_rng(seed)

    def draw(array, info):
        centre = 1.0 if info.kind in ("norm", "alpha") else 0.0
        return (centre + 0.3 * rng.normal(size=array.shape)).astype(np.float32)

    return jax.tree.map(draw, network.abstract, network.infos)


class Made:
    """A sampler of a randomised model, and the full forward pass of the same model."""

    def __init__(self, name, dtype=jnp.float32):
        self.network = registry.build(variant(name), dtype=dtype)
        self.params = random_params(self.network)
        self.sampler = Sampler(self.network, self.params, eos_id=EOS, max_length=CONTEXT)
        self._forward = jax.jit(self._logits)

    def _logits(self, params, tokens_1xL):
        model = self.network.merge(params)
        return model.logits(model.hidden(tokens_1xL)[0])[0]

    def logits(self, ids, params=None):
        """Logits (L, V) of a row of ids."""
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._forward(self.params if params is None else params, padded))[: len(ids)]

    def greedy(self, prompt, n, **options):
        """Greedy tokens and their log-probabilities, with a full forward pass for each token."""
        tokens, logprobs = [], []
        while len(tokens) < n and (not tokens or tokens[-1] != self.sampler.eos_id):
            last = self.logits([*prompt, *tokens], **options)[-1]
            tokens.append(int(last.argmax()))
            logprobs.append(float(last[tokens[-1]] - np.logaddexp.reduce(last)))
        return tokens, logprobs


made = functools.cache(Made)


@pytest.fixture
def endless(request, monkeypatch):
    """A model that never ends a text; a test can name the variant."""
    it = made(getattr(request, "param", "waveresnet_dilated"))
    monkeypatch.setattr(it.sampler, "eos_id", -2)
    return it


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, VOCAB, n - 1).tolist()] for n in lengths]


def texts(rows):
    return [row.tokens for row in rows]


class Compilations:
    """Counts all compilations inside the context."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


# --- generated tokens -----------------------------------------------------------------------------------


@quick_variants
def test_a_greedy_batch_of_mixed_lengths_equals_full_forward_passes(name):
    it = made(name)
    prompts = prompts_of(1, 6, 17)
    for prompt, row in zip(prompts, generate(it.sampler, prompts, GREEDY, max_new_tokens=25), strict=True):
        tokens, logprobs = it.greedy(prompt, 25)
        assert row.tokens == tokens
        np.testing.assert_allclose(row.logprobs, logprobs, atol=ATOL, rtol=RTOL)
        assert row.finish == ("eos" if tokens[-1] == EOS else "length")


def test_a_row_alone_equals_the_same_row_in_a_batch(endless):
    prompts = prompts_of(1, 6, 17)
    for sampling in (GREEDY, Sampling(temperature=1.5, top_p=0.95)):
        together = generate(endless.sampler, prompts, sampling, max_new_tokens=20, streams=[5, 6, 7])
        for i, prompt in enumerate(prompts):
            alone = generate(endless.sampler, [prompt], sampling, max_new_tokens=20, streams=[5 + i])
            assert texts(alone) == [together[i].tokens]


def test_a_seeded_row_depends_on_seed_and_stream_and_not_on_its_neighbours(endless):
    sampler = endless.sampler
    a, b, c = prompts_of(4, 9, 13)
    sampling, options = Sampling(temperature=2.0, top_p=1.0), {"max_new_tokens": 20}
    first = texts(generate(sampler, [a, b, c], sampling, seed=3, **options))
    assert texts(generate(sampler, [a, b, c], sampling, seed=3, **options)) == first
    moved = texts(generate(sampler, [c, a, a, b], sampling, seed=3, streams=[2, 0, 3, 1], **options))
    assert [moved[1], moved[3], moved[0]] == first
    assert moved[2] != moved[1], "the same prompt on another stream"
    assert texts(generate(sampler, [a, b, c], sampling, seed=4, **options)) != first


def test_a_text_does_not_depend_on_the_number_of_steps_per_call(endless):
    prompts = prompts_of(4, 9, 13)
    whole = generate(endless.sampler, prompts, Sampling(), max_new_tokens=30)
    generation = Generation(endless.sampler, prompts, Sampling(), max_new_tokens=30)
    lengths = []
    while not generation.finished:
        generation.advance(len(lengths) + 1)
        lengths.append([len(row.tokens) for row in generation.rows])
    assert lengths[:3] == [[1] * 3, [3] * 3, [6] * 3]
    assert generation.rows == whole


def test_draws_follow_the_distribution_of_the_model():
    it = made("waveresnet_dilated")
    (prompt,) = prompts_of(7)
    sampling, n = Sampling(temperature=0.7, top_k=6, top_p=1.0), 2000
    rows = [generate(it.sampler, [prompt] * 4, sampling, max_new_tokens=1, seed=seed) for seed in range(n // 4)]
    last = it.logits(prompt)[-1].astype(np.float64) / 0.7
    weights = np.where(last >= np.sort(last)[-6], np.exp(last), 0)
    p = weights / weights.sum()
    counts = np.bincount([row.tokens[0] for four in rows for row in four], minlength=VOCAB)
    assert (counts[p == 0] == 0).all()
    deviation = (counts - n * p)[p > 0] / np.sqrt(n * p * (1 - p))[p > 0]
    assert np.abs(deviation).max() < 4.5


def test_the_repetition_penalty_applies_to_prompt_and_generated_tokens(endless):
    (prompt,) = prompts_of(9)
    (row,) = generate(endless.sampler, [prompt], Sampling(temperature=0, repetition_penalty=3.0), max_new_tokens=12)
    ids = list(prompt)
    for token in row.tokens:
        last = endless.logits(ids)[-1]
        seen = np.isin(np.arange(VOCAB), ids)
        assert token == np.where(seen, np.where(last > 0, last / 3, last * 3), last).argmax()
        ids.append(token)
    (plain,) = generate(endless.sampler, [prompt], GREEDY, max_new_tokens=12)
    assert row.tokens != plain.tokens


# --- where rows end -------------------------------------------------------------------------------------


def test_every_row_stops_at_its_own_eos(endless):
    prompts, sampling = prompts_of(4, 9, 13), Sampling(temperature=2.0)
    plain = texts(generate(endless.sampler, prompts, sampling, max_new_tokens=20))
    endless.sampler.eos_id = eos_id = plain[1][4]
    rows = generate(endless.sampler, prompts, sampling, max_new_tokens=20)
    for row, tokens in zip(rows, plain, strict=True):
        end = tokens.index(eos_id) + 1 if eos_id in tokens else 20
        assert row.tokens == tokens[:end]
        assert len(row.logprobs) == end
        assert row.finish == ("eos" if eos_id in tokens else "length")
    assert len(rows[1].tokens) <= 5
    assert max(len(row.tokens) for row in rows) > 5, "other rows continue"


def test_the_loop_ends_with_its_last_row(endless, monkeypatch):
    endless.sampler.eos_id = endless.greedy([1], 3)[0][2]
    calls, decode = [], endless.sampler.decode
    monkeypatch.setattr(endless.sampler, "decode", lambda *args: calls.append(decode(*args)) or calls[-1])
    (row,) = generate(endless.sampler, [[1]], GREEDY, max_new_tokens=40)
    assert row.finish == "eos"
    assert len(calls) == 1
    assert int(calls[0][0]["cache"]["length"][0]) == len(row.tokens), "no step after the last token"


def test_a_full_context_ends_a_row_if_asked_to(endless):
    rows = generate(endless.sampler, prompts_of(44, CONTEXT, 10), GREEDY, max_new_tokens=25, overflow="stop")
    for row, n in zip(rows, (CONTEXT - 44 + 1, 1, 25), strict=True):
        assert row.tokens == endless.greedy(row.prompt, n)[0]
    assert [row.finish for row in rows] == ["context", "context", "length"]


@pytest.mark.parametrize("endless", ["waveresnet_dilated", "sgrpsann"], indirect=True)
def test_a_sliding_context_continues_from_its_last_half(endless):
    half = CONTEXT // 2
    prompts = prompts_of(40, 3, CONTEXT + 9)  # the last one does not fit
    rows = generate(endless.sampler, prompts, GREEDY, max_new_tokens=2 * CONTEXT)
    for row in rows:
        window = row.prompt if len(row.prompt) <= CONTEXT else row.prompt[-half:]
        for token in row.tokens:
            assert token == endless.logits(window)[-1].argmax()
            window = [*window, token]
            window = window if len(window) <= CONTEXT else window[-half:]
        assert (row.finish, len(row.tokens)) == ("length", 2 * CONTEXT)


def test_a_caller_ends_a_row_and_the_others_continue(endless):
    prompts = prompts_of(4, 9, 13)
    plain = generate(endless.sampler, prompts, Sampling(), max_new_tokens=20)
    generation = Generation(endless.sampler, prompts, Sampling(), max_new_tokens=20)
    generation.advance(5)
    generation.stop(1, 3)
    while not generation.finished:
        generation.advance(5)
    assert generation.rows[1].tokens == plain[1].tokens[:3]
    assert generation.rows[1].logprobs == plain[1].logprobs[:3]
    assert generation.rows[1].finish == "stop"
    assert [generation.rows[0], generation.rows[2]] == [plain[0], plain[2]]


# --- shapes, dtypes, parameters -------------------------------------------------------------------------


def test_a_long_prompt_is_prefilled_in_chunks(endless, monkeypatch):
    monkeypatch.setattr(generation_module, "_MAX_PREFILL", 16)
    shapes, prefill = [], endless.sampler.prefill
    monkeypatch.setattr(endless.sampler, "prefill", lambda *args: shapes.append(args[1].shape) or prefill(*args))
    for row in generate(endless.sampler, prompts_of(40, 5, 17), GREEDY, max_new_tokens=5):
        assert row.tokens == endless.greedy(row.prompt, 5)[0]
    assert shapes == [(4, 16)] * 3


def test_known_shapes_do_not_recompile(endless):
    generate(endless.sampler, prompts_of(2, 30, 8), GREEDY, max_new_tokens=10)
    calls = [
        ((18, 1, 20), GREEDY, 40),
        ((31, 31, 31, 31), Sampling(0.7, 5, 0.9, 0.1, 1.3), 17),
        ((3, 25, 8), Sampling(temperature=2), 1),
    ]
    with Compilations() as compilations:
        for lengths, sampling, n in calls:
            prompts, streams = prompts_of(*lengths), range(9, 9 + len(lengths))
            generate(endless.sampler, prompts, sampling, max_new_tokens=n, seed=n, streams=streams)
    assert compilations.count == 0
    with Compilations() as compilations:
        jax.jit(lambda x: x + 1)(0)
    assert compilations.count == 1, "the counter works"


def test_bfloat16_computes_and_caches_in_bfloat16():
    it = made("respsann", jnp.bfloat16)
    prompts = prompts_of(5, 11)
    generation = Generation(it.sampler, prompts, GREEDY, max_new_tokens=1)
    assert {x.dtype for x in jax.tree.leaves(generation._state["cache"]["layers"])} == {jnp.dtype(jnp.bfloat16)}
    generation.advance()
    for row in generation.rows:
        last = made("respsann").logits(row.prompt)[-1]
        exact = (last - np.logaddexp.reduce(last))[row.tokens[0]]
        assert row.logprobs[0] == pytest.approx(exact, abs=0.2)
        assert row.logprobs[0] != exact


def test_coordinates_and_scores_of_gravity_stay_in_float32():
    sampler = made("ngt", jnp.bfloat16).sampler
    found = jax.tree.map(lambda array, info: (str(array.dtype), info.kind), sampler._params, sampler._infos)
    is_pair = {"is_leaf": lambda x: isinstance(x, tuple)}
    assert {kind for dtype, kind in jax.tree.leaves(found, **is_pair) if dtype == "bfloat16"} == {
        "matrix",
        "embedding",
        "bias",
    }
    linears = [linear for block in found["blocks"].values() for linear in (block["next"], block["attn"]["coords"])]
    assert {linear["bias"] for linear in linears} == {("float32", "gravity")}


def test_new_parameters_take_effect_without_recompilation(endless):
    prompts, second = prompts_of(4, 9, 13), random_params(endless.network, seed=5)
    before = texts(generate(endless.sampler, prompts, GREEDY, max_new_tokens=8))
    with Compilations() as compilations:
        endless.sampler.update(second)
        after = texts(generate(endless.sampler, prompts, GREEDY, max_new_tokens=8))
        endless.sampler.update(endless.params)
    assert compilations.count == 0
    assert after == [endless.greedy(prompt, 8, params=second)[0] for prompt in prompts] != before


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompt: is missing"),
        ([[1], []], {}, "prompt: has no tokens; it must begin with the bos token"),
        ([[1, VOCAB]], {}, f"prompt: has token id {VOCAB}, outside the {VOCAB} ids"),
        ([[1, -1]], {}, "prompt: has token id -1"),
        (
            [[1] * (CONTEXT + 1)],
            {"overflow": "stop"},
            f"prompt: has {CONTEXT + 1} tokens, more than the model's",
        ),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: is 0, must be at least 1"),
        ([[1]], {"seed": -1}, "seed: is -1"),
        ([[1]], {"overflow": "wrap"}, "overflow: is 'wrap', must be one of stop, slide"),
    ],
)
def test_an_error_names_the_cause(prompts, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Generation(made("respsann").sampler, prompts, GREEDY, **{"max_new_tokens": 5, **options})


def test_damaged_parameters_are_an_error(endless):
    damaged = random_params(endless.network)
    damaged["norm"]["scale"][0] = np.nan
    endless.sampler.update(damaged)
    try:
        with pytest.raises(UserError, match="logits are not finite"):
            generate(endless.sampler, prompts_of(4, 9, 13), Sampling(), max_new_tokens=5)
    finally:
        endless.sampler.update(endless.params)
