"""What is streamed is what is returned, for every kind of tokenizer, text and stop string."""

import functools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from psann_jax.config import TokenizerConfig
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from tests.support.scripted import scripted

SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = "\u2581abcdehlorw.,é"
TRAINED = ("bpe", "unigram", "wordpiece", "sentencepiece")
KINDS = (*TRAINED, "bytes", "llama", "unigram_bytes", "replaced")


def with_byte_fallback(model):
    """A tokenizer.json as Llama's: letters, and bytes for everything else."""
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(SPECIAL)
    return made.to_str()


@functools.cache
def tokenizer_of(kind, folder):
    """A tokenizer of each kind; "replaced" is one whose decoder changes text that is already complete."""
    if kind == "bytes":
        return byte_tokenizer()
    if kind in TRAINED:
        texts = ["hello world, a cab. bed 😀 é", "all red. 😀😀 low"] * 50
        return train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=300), False)
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    if kind == "llama":
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        content = with_byte_fallback(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    elif kind == "unigram_bytes":
        scores = [(piece, -1.0) for piece in pieces]
        content = with_byte_fallback(models.Unigram(scores, unk_id=0, byte_fallback=True))
    else:
        description = json.loads(tokenizer_of("bpe", folder).to_bytes())
        made = tokenizers.Tokenizer.from_str(description["model"])
        made.decoder = decoders.Sequence(
            [decoders.ByteLevel(), decoders.Replace(" .", "."), decoders.Replace("d,", ",")]
        )
        content = made.to_str()
    path = folder / f"{kind}.json"
    path.write_text(content)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def check(tokenizer, ids, prompt="", stop=()):
    """Returns the text after checking that it is streamed as it is returned, whatever the number of tokens at once."""
    ((done,), (pieces,)), ((at_once,), _) = (
        scripted(lambda _: ids, [prompt], tokenizer, streamed, stop=stop) for streamed in (True, False)
    )
    assert "".join(pieces) == done.text
    assert done == at_once
    start = tokenizer.decode(tokenizer.encode(prompt))
    decoded = tokenizer.decode([*tokenizer.encode(prompt), *done.tokens])[len(start) :]
    assert decoded.startswith(done.text)
    if done.finish == "stop":
        assert not any(s in done.text for s in stop)
        assert any(decoded[len(done.text) :].startswith(s) for s in stop)
    else:
        assert (decoded, done.tokens) == (done.text, ids)
        assert not any(s in done.text for s in stop)
    return pieces


@pytest.mark.parametrize("kind", KINDS)
def test_multi_byte_characters_in_a_row_are_streamed_whole(kind, folder):
    tokenizer = tokenizer_of(kind, folder)
    pieces = check(tokenizer, tokenizer.encode("hello 😀😀 é😀. low, a world 😀"))
    assert not any("\ufffd" in piece for piece in pieces)
    assert (len(pieces) > 1) == (kind != "replaced")


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_is_streamed_as_it_is_returned(kind, folder):
    tokenizer = tokenizer_of(kind, folder)
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from("abd .,😀é\ufffd\u2581 ")

    @settings(max_examples=60, deadline=None)
    @given(
        text=st.text(characters, max_size=30),
        prompt=st.text(characters, max_size=4),
        stop=st.lists(st.text(characters, min_size=1, max_size=2), max_size=2),
    )
    def run(text, prompt, stop):
        if ids := tokenizer.encode(text):
            check(tokenizer, ids, prompt, tuple(stop))

    run()


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokens_are_streamed_as_they_are_returned(kind, folder):
    """Also bytes that form no character."""
    tokenizer = tokenizer_of(kind, folder)
    ids = st.integers(0, tokenizer.vocab_size - 1).filter(lambda i: i != tokenizer.eos_id)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(ids, min_size=1, max_size=30), st.sampled_from([(), ("\ufffd",), (" a", ".")]))
    def run(tokens, stop):
        check(tokenizer, tokens, "a 😀", stop)

    run()


def test_an_incomplete_byte_does_not_spoil_the_characters_before_it(folder):
    tokenizer = tokenizer_of("llama", folder)
    ids = tokenizer.encode("a 😀😀")
    texts = [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert texts[-5:] == ["a 😀", "a 😀\ufffd", "a 😀\ufffd", "a 😀\ufffd", "a 😀😀"]
