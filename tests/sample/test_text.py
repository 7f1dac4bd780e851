"""Text in and out of the loop: prompts, stop strings, incomplete characters, independent samples, speed."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import DecoderConfig, TokenizerConfig
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.models import network as registry
from psann_jax.sample.sampler import Sampler
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler, token_starts
from psann_jax.utils.errors import UserError
from tests.support.scripted import scripted

BYTES = byte_tokenizer()


@functools.cache
def made():
    """A sampler of a randomised byte-level network."""
    config = DecoderConfig(base="respsann", vocab_size=BYTES.vocab_size, d_model=16, n_layers=1, n_heads=2, d_mlp=16)
    network, rng = registry.build(config), np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), network.abstract)
    return TextSampler(Sampler(network, params, eos_id=BYTES.eos_id, max_length=64), BYTES)


def says(text):
    return lambda prompt: BYTES.encode(text)


# --- stop strings ---------------------------------------------------------------------------------------


def test_a_text_is_cut_at_a_stop_string_that_spans_tokens():
    (done,), pieces = scripted(says("one. two.\n\nthree"), stop=("\n\n",))
    assert (done.text, done.finish) == ("one. two.", "stop")
    assert BYTES.decode(done.tokens) == "one. two.\n\n"
    assert len(done.logprobs) == len(done.tokens)
    assert "".join(pieces[0]) == "one. two."


def test_the_stop_string_that_is_completed_first_counts():
    (done,), _ = scripted(says("xxabcd"), stop=("abcd", "c"))
    assert (done.text, len(done.tokens)) == ("xxab", 5)
    (done,), _ = scripted(says("xxabcd"), stop=("bc", "abc"))
    assert (done.text, len(done.tokens)) == ("xx", 5)


def test_a_possible_beginning_of_a_stop_string_is_held_back():
    (done,), pieces = scripted(says("a <st <sto"), stop=("<stop>",))
    assert (done.text, done.finish) == ("a <st <sto", "length")
    assert "".join(pieces[0]) == done.text
    assert not any("".join(pieces[0][:n]).endswith(("<", "<s", "<st")) for n in range(1, len(pieces[0])))


def test_a_stop_string_in_the_prompt_stops_nothing():
    (done,), _ = scripted(says("more"), prompts=["say stop"], stop=("stop", "pm"))
    assert (done.text, done.finish) == ("more", "length")


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("ab\n é😀", max_size=40),
    stop=st.lists(st.text("ab\n é", min_size=1, max_size=3), max_size=3),
    prompt=st.text("ab", max_size=3),
)
def test_pieces_stops_and_tokens_agree_for_any_text(text, stop, prompt):
    ids = [*BYTES.encode(text), BYTES.eos_id]
    (done,), pieces = scripted(lambda _: ids, prompts=[prompt], stop=tuple(stop))
    ends = [n for n in range(len(ids) + 1) if any(s in BYTES.decode(ids[:n]) for s in stop)]
    expected, kept = text, ids
    if ends:
        kept = ids[: ends[0]]
        until = BYTES.decode(kept)
        expected = until[: min(until.find(s) for s in stop if s in until)]
    assert (done.text, done.tokens) == (expected, kept)
    assert "".join(pieces[0]) == expected
    assert done.finish == ("stop" if ends else "length")


# --- characters -----------------------------------------------------------------------------------------


def test_an_incomplete_character_is_held_back():
    (done,), pieces = scripted(says("héllo 😀 wörld"))
    assert done.text == "héllo 😀 wörld"
    assert "".join(pieces[0]) == done.text
    assert not any("\ufffd" in piece for piece in pieces[0])
    assert len(pieces[0]) > 2


def test_an_incomplete_character_at_the_end_is_shown():
    (done,), pieces = scripted(lambda _: BYTES.encode("ab😀")[:-1])
    assert done.text == "ab\ufffd"
    assert "".join(pieces[0]) == done.text


def test_a_space_before_the_first_word_is_kept():
    tokenizer = train_tokenizer(
        ["the cat sat on the mat"] * 50, TokenizerConfig(kind="wordpiece", vocab_size=60), False
    )
    whole = tokenizer.encode("the cat sat")
    n = len(tokenizer.encode("the cat"))
    (done,), _ = scripted(lambda prompt: whole[n:], prompts=["the cat"], tokenizer=tokenizer)
    assert done.prompt + done.text == "the cat sat"


# --- prompts and samples --------------------------------------------------------------------------------


def test_a_prompt_is_read_after_bos_and_without_eos():
    read = []
    list(scripted(lambda prompt: read.append(prompt) or BYTES.encode("x"), prompts=["hi", ""])[0])
    assert read == [[BYTES.bos_id, *BYTES.encode("hi")], [BYTES.bos_id]]


def complete(prompts, **options):
    settings = GenerationOptions(**{"max_new_tokens": 12, **options})
    return [done.tokens for done in made().complete(prompts, Sampling(temperature=1.5), settings)]


def test_samples_do_not_depend_on_the_other_prompts_or_the_batches():
    # Batches of four rows or one, so that few shapes are compiled.
    both = complete(["sun", "moon"], num_samples=2)
    assert complete(["moon"], num_samples=3)[:2] == both[2:]
    mixed = complete(["moon", "star", "sun", "moon", "sun"], batch_size=4)
    assert [mixed[2], mixed[4], mixed[0], mixed[3]] == both
    assert len({tuple(tokens) for tokens in mixed}) == 5
    assert complete(["sun"], batch_size=1) == both[:1]
    assert complete(["sun"], batch_size=1, seed=1) != both[:1]


def test_completions_come_batch_by_batch_and_in_order():
    options = GenerationOptions(max_new_tokens=3, batch_size=4)
    done = made().complete(list("abcde"), Sampling(temperature=0), options)
    before = made().speed.tokens
    first = next(done)
    assert (first.prompt, made().speed.tokens) == ("a", before + 12)
    assert [d.prompt for d in done] == list("bcde")


def test_speed_counts_tokens_and_time():
    sampler = TextSampler(made().sampler, BYTES)
    done = list(sampler.complete(list("abc"), Sampling(temperature=0), GenerationOptions(max_new_tokens=30)))
    n = sum(len(d.tokens) for d in done)
    assert (sampler.speed.tokens, sampler.speed.later_tokens) == (n, n - 3)
    assert sampler.speed.first_s > 0
    assert sampler.speed.later_s > 0


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a\udc80", {}, "prompt: is not valid Unicode text"),
        ("a" * 70, {"overflow": "stop"}, "prompt: has 71 tokens, more than the model's context of 64"),
        ("a", {"batch_size": 0}, "batch_size: is 0"),
    ],
)
def test_an_error_names_the_cause(prompt, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        complete([prompt], **options)


def test_a_prompt_that_is_too_long_is_found_before_any_text_is_generated():
    tokens, long = made().speed.tokens, "x" * 70
    for number, prompts in ((10, ["a"] * 9 + [long]), (2, ["a", long])):
        with pytest.raises(UserError, match=f"^prompt {number}: has 71 tokens, more than the model's context of 64"):
            complete(prompts, overflow="stop", num_samples=2)
    assert made().speed.tokens == tokens


def test_invalid_sampling_is_named():
    with pytest.raises(UserError, match=r"^top_p: is 2"):
        made().complete(["a"], Sampling(top_p=2))


# --- where the tokens of a prompt begin -----------------------------------------------------------------


@functools.cache
def tokenizer_of(kind):
    texts = ["the moon and the sea", "über den Fluß", "wave after wave\n\n  stone"] * 20
    return BYTES if kind == "bytes" else train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=300))


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram", "wordpiece"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="aehmnot wü\n\u20ac\U0001f600", max_size=30))
def test_the_starts_of_tokens(kind, text):
    """Those of the decoded beginnings, also where a token is a part of a character."""
    tokenizer = tokenizer_of(kind)
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    starts = token_starts(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert (starts[0], starts[-1], len(starts)) == (0, len(whole), len(ids))
    for i, start in enumerate(starts):
        before = tokenizer.decode(ids[:i]).rstrip("\ufffd")
        assert len(before) == start
        assert whole.startswith(before)
