"""What one document of a .txt file is, chosen by the text."""

import random
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.config import DataConfig, TokenizerConfig
from psann_jax.data.corpus import Corpus
from psann_jax.data.loader import load_text
from psann_jax.data.text_units import choose_unit, paragraphs

WORDS = ["the", "sea", "a", "of", "light", "wave", "under", "bright", "stones", "falling", "river", "and", "remembers"]


def prose(n_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words)) + "."


def sentences(n: int) -> str:
    return "\n".join(prose(random.Random(i).randint(3, 25), i) for i in range(n))


def wrapped(n: int, width: int = 72, separator: str = "\n\n") -> str:
    return separator.join(textwrap.fill(prose(random.Random(i).randint(30, 120), i), width) for i in range(n))


def verse(n: int) -> str:
    return "\n\n".join("\n".join(prose(4 + line % 3, i * 9 + line) for line in range(4)) for i in range(n))


CASES = {
    "a sentence per line": (sentences(200), 1, "line"),
    "a paragraph per line": (sentences(200).replace("\n", "\n\n"), 1, "line"),
    "hard-wrapped": (wrapped(30), 1, "paragraph"),
    "narrow": (wrapped(30, width=45), 1, "paragraph"),
    "hard-wrapped without blank lines": (wrapped(30, separator="\n"), 1, "file"),
    "many hard-wrapped files": (wrapped(30), 20, "file"),
    "verse": (verse(30), 1, "paragraph"),
    "many files of verse": (verse(30), 50, "file"),
    "many files of sentences": (sentences(200), 50, "line"),
    "letters without separators": ("\n".join("ACGT" * 40_000 for _ in range(4)), 1, "line"),
    "a word per line": ("\n".join(WORDS * 20), 1, "line"),
    "short": ("the moon\nsea\n", 1, "line"),
    "one line": ("the moon", 1, "line"),
    "empty": ("", 1, "line"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_unit_fits_the_text(case):
    text, n_files, unit = CASES[case]
    assert choose_unit([text], n_files) == unit
    assert choose_unit([text, text], n_files) == unit


@given(st.lists(st.sampled_from(["", " ", "\t", "a", "b c", "d"])))
def test_paragraphs_keep_every_line_that_is_not_blank(lines):
    found = list(paragraphs(lines))
    assert [line for text in found for line in text.split("\n")] == [line for line in lines if line.strip()]
    assert all(line.strip() for text in found for line in text.split("\n"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_paragraphs_of_hard_wrapped_prose_are_documents(tmp_path, line_end):
    path = tmp_path / "book.txt"
    path.write_bytes(wrapped(40).replace("\n", line_end).encode())
    config = DataConfig(
        sources=(str(path),), max_length=16, cache_dir=str(tmp_path), tokenizer=TokenizerConfig(kind="bytes")
    )
    data = load_text(config, progress=False)
    assert data.document == "paragraph"
    assert data.n_train_documents + data.n_valid_documents == 40
    assert f"documents   each paragraph of {path}" in data.describe().split("\n")
    corpus = Corpus(config, progress=False)
    assert [document.text for document in corpus.documents()] == wrapped(40).split("\n\n")


def test_a_chosen_unit_gives_the_same_data_as_the_setting(tmp_path):
    (tmp_path / "a.txt").write_text(sentences(50))
    (tmp_path / "b.txt").write_text(wrapped(30))
    for name, unit in (("a.txt", "line"), ("b.txt", "paragraph")):
        chosen, given_ = (
            Corpus(DataConfig(sources=(str(tmp_path / name),), document=document), progress=False)
            for document in ("auto", unit)
        )
        assert chosen.fingerprint == given_.fingerprint
        assert chosen.document == unit


def test_validation_text_is_read_like_the_training_text(tmp_path):
    (tmp_path / "a.txt").write_text(wrapped(30))
    (tmp_path / "v.txt").write_text("two\nlines\n\nand\nmore\n")
    names = str(tmp_path / "a.txt"), str(tmp_path / "v.txt")
    corpus = Corpus(DataConfig(sources=names[:1], valid_sources=names[1:]), progress=False)
    assert [d.text for d in corpus.documents() if d.is_valid] == ["two\nlines", "and\nmore"]


def test_sources_with_different_units(tmp_path):
    (tmp_path / "a.txt").write_text(wrapped(30))
    (tmp_path / "b.txt").write_text(sentences(50))
    names = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    config = DataConfig(sources=names, max_length=16, cache_dir=str(tmp_path), tokenizer=TokenizerConfig(kind="bytes"))
    data = load_text(config, progress=False)
    assert data.document == "auto"
    assert f"documents   each paragraph of {names[0]}, each line of {names[1]}" in data.describe()
