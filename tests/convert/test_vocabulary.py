"""Rows of a new vocabulary."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import TokenizerConfig
from psann_jax.convert.vocabulary import match_vocabularies
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.data.tokenizer_training import train_tokenizer
from tests.support.tiny import sentences


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
