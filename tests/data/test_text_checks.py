"""Warnings about properties of a text."""

import numpy as np
import pytest

from psann_jax.data.shards import Shard
from psann_jax.data.text_checks import unknown_word_warnings
from psann_jax.data.tokenizer import byte_tokenizer

PLAIN = "the lobster is a species of clawed lobster from the eastern ocean . "


def shard_of(text, extra=()):
    ids = np.array([*byte_tokenizer().encode(text), *extra], np.uint16)
    return Shard(ids, np.array([0, len(ids)]), len(text))


def lines(*shards):
    return list(unknown_word_warnings(shards, byte_tokenizer()))


@pytest.mark.parametrize("n", [1, 2000], ids=["short", "longer than the sample"])
def test_words_replaced_by_unk_are_reported(n):
    text = PLAIN.replace("clawed", "<unk>") * (n * 4)
    (line,) = lines(shard_of(PLAIN * 10), shard_of(text))
    assert line.startswith("the text has <unk> in place of words, ")
    assert "use the raw version" in line


def test_other_texts_are_not():
    assert lines(shard_of(PLAIN * 100), shard_of("")) == []
    assert lines(shard_of(PLAIN * 1000 + "the unknown token is called <unk>")) == []
    assert lines(shard_of(PLAIN, [byte_tokenizer().unk_id] * 100)) == []
