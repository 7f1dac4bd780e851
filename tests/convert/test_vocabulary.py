"""Rows of a new vocabulary."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from psann_jax.config import TokenizerConfig
from psann_jax.convert.transfer import Transfer
from psann_jax.convert.vocabulary import match_vocabularies
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from psann_jax.models.network import build
from tests.support.tiny import sentences
from tests.support.variants import variant


@functools.cache
def tokenizer(vocab_size, seed, eos="<eos>"):
    texts = [text.replace("s", "ß") if seed else text for text in sentences(60, seed)]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size, min_frequency=1, eos_token=eos), False)


def rows_of(old, new, table):
    return np.asarray(match_vocabularies(old, new, None, None).apply(jnp.asarray(table), 0))


@settings(deadline=None, max_examples=20)
@given(st.integers(270, 330), st.integers(270, 330), st.integers(0, 2), st.integers(0, 2))
def test_each_token_has_the_row_of_its_text_or_the_mean_of_its_parts(old_size, new_size, old_seed, new_seed):
    old, new = tokenizer(old_size, old_seed), tokenizer(new_size, new_seed, "<end>")
    table = np.random.default_rng(0).normal(size=(old.vocab_size, 3)).astype(np.float32)
    found = rows_of(old, new, table)
    ids = {old.piece(i): i for i in range(4, old.vocab_size)}
    assert found.shape == (new.vocab_size, 3)
    for role in ("pad", "bos", "eos", "unk"):
        np.testing.assert_array_equal(found[getattr(new, f"{role}_id")], table[getattr(old, f"{role}_id")])
    for i in range(4, new.vocab_size):
        piece = new.piece(i)
        if piece in ids:
            np.testing.assert_array_equal(found[i], table[ids[piece]])
        else:
            np.testing.assert_allclose(found[i], table[old.encode(piece.decode())].mean(0), atol=1e-6)


def single_special_token(path):
    """A tokenizer as GPT-2's: one token is pad, bos and eos."""
    pieces = ["<|endoftext|>", *ByteLevel.alphabet()]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(path))
    return Tokenizer.load(path)


def test_a_token_that_is_bos_and_eos_gets_the_mean_of_both(tmp_path):
    old, new = byte_tokenizer(), single_special_token(tmp_path / "tokenizer.json")
    assert new.pad_id == new.bos_id == new.eos_id
    source, target = (build(variant("respsann", vocab_size=t.vocab_size)) for t in (old, new))
    table = np.random.default_rng(0).normal(size=(old.vocab_size, 3)).astype(np.float32)
    np.testing.assert_allclose(rows_of(old, new, table)[new.eos_id], table[[old.bos_id, old.eos_id]].mean(0), atol=1e-7)
    transfer = Transfer(source, target, match_vocabularies(old, new, source, target), "the source")
    assert "256 of 257 tokens matched, the others are means" in transfer.summary()
    assert {"tokens": 257, "same_text": 256, "means": 1}.items() <= transfer.report()["vocabulary"].items()
    back = rows_of(new, old, np.arange(257.0)[:, None])
    assert [back[i, 0] for i in (old.pad_id, old.bos_id, old.eos_id)] == [new.eos_id] * 3


def test_a_token_that_is_pad_and_eos_gets_the_row_of_eos(monkeypatch):
    """No target trains the row of pad."""
    old, new = tokenizer(300, 0), tokenizer(310, 1)
    monkeypatch.setattr(new, "pad_id", new.eos_id)
    found = rows_of(old, new, np.arange(float(old.vocab_size))[:, None])
    assert (found[new.eos_id, 0], found[new.bos_id, 0]) == (old.eos_id, old.bos_id)


def test_a_token_that_is_no_text_gets_the_mean_of_all(monkeypatch):
    """A byte of a longer character, for a vocabulary without single bytes."""
    old, new = tokenizer(300, 0), byte_tokenizer()
    table = np.random.default_rng(0).normal(size=(old.vocab_size, 3)).astype(np.float32)
    monkeypatch.setattr(old, "piece", lambda i: b"x%d" % i)
    np.testing.assert_allclose(rows_of(old, new, table)[4 + 0xC3], table.mean(0), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_can_be_that_of_the_vocabulary(axis):
    old, new = tokenizer(300, 0), tokenizer(310, 1)
    table = np.random.default_rng(0).normal(size=(old.vocab_size, 2, 3)).astype(np.float32)
    found = match_vocabularies(old, new, None, None).apply(jnp.asarray(np.moveaxis(table, 0, axis)), axis)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(found), axis, 0), rows_of(old, new, table))


def test_the_same_vocabulary_is_not_changed():
    assert match_vocabularies(tokenizer(300, 0), tokenizer(300, 0), None, None) is None
