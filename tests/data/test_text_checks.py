"""Warnings about properties of a text."""

import os

import numpy as np
import pytest

from psann_jax.data.shards import Shard
from psann_jax.data.text_checks import repeat_warnings, unknown_word_warnings
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


def test_files_that_are_read_twice_are_reported(tmp_path):
    a, b, link = (str(tmp_path / name) for name in ("a.txt", "b.txt", "link.txt"))
    for path in (a, b):
        with open(path, "w") as file:
            file.write("text")
    os.symlink(a, link)
    assert list(repeat_warnings([[a, a, b], ["hf:x"], ["builtin:python"]])) == []  # parts of a file are no repeats
    known = "data.sources names the same text twice, which is then trained on twice: "
    assert list(repeat_warnings([[a, b, link]])) == [f"{known}{a} and {link}"]
    assert list(repeat_warnings([[a, b], [b, a], ["hf:x"], ["hf:x"]])) == [f"{known}{b} and {b}, and 2 more files"]
