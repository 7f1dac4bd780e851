"""What one document of a .txt file is, chosen by the text."""

import json
import random
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psann_jax.config import DataConfig, TokenizerConfig
from psann_jax.data.corpus import Corpus
from psann_jax.data.loader import load_text
from psann_jax.data.sources import open_source
from psann_jax.data.text_units import articles, chapters, choose_unit, paragraphs, suggest_unit
from psann_jax.utils.errors import UserError

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


WIKITEXT = """ \n = Valkyria III = \n \n A game . \n = not a heading = \n = = Gameplay = = \n \n = = = Deep = = = \n
 x = y = z \n \n = Plain ( 2013 – 14 ) = \n \n Text . \n = = See also = = \n"""
ARTICLES = [
    " = Valkyria III = \n \n A game . \n = not a heading = \n = = Gameplay = = \n \n = = = Deep = = = \n\n x = y = z ",
    " = Plain ( 2013 – 14 ) = \n \n Text . \n = = See also = = ",
]


def test_wikitext_articles():
    assert list(articles(WIKITEXT.split("\n"), "f")) == ARTICLES
    assert list(articles(["before", "", *WIKITEXT.split("\n")], "f")) == ["before", *ARTICLES]
    assert list(articles([" = A = "], "f")) == [" = A = "]


CHAPTERS = ["# One", "text", "## Section", "#hashtag", "```", "# a comment", "```", "", "#\tTwo", "more", "   # Three"]


def test_markdown_chapters():
    assert list(chapters(CHAPTERS, "f")) == ["\n".join(CHAPTERS[:7]), "#\tTwo\nmore", "   # Three"]
    assert next(chapters(["title", *CHAPTERS], "f")) == "title"


@pytest.mark.parametrize(("cut", "name"), [(articles, "TITLE ="), (chapters, "# TITLE")])
def test_a_text_without_headings_is_refused(cut, name):
    with pytest.raises(UserError, match=f"^data.document: f.txt has no line '.*{name}"):
        list(cut(["a", "", " = = B = = ", "", "## c"], "f.txt"))


@given(st.lists(st.sampled_from(["", " ", " = A = ", " = = B = = ", "# C", "```", "text"])))
def test_articles_and_chapters_keep_every_line_that_is_not_blank(lines):
    for cut, head in ((articles, [" = A = ", ""]), (chapters, ["# A"])):
        found = [line for text in cut([*head, *lines], "f") for line in text.split("\n")]
        assert [line for line in found if line.strip()] == [line for line in [*head, *lines] if line.strip()]


def test_suggested_units():
    assert suggest_unit([WIKITEXT]) == "article"
    assert suggest_unit(["# One\n\ntext\n\n# Two\n\ntext\n"]) == "heading"
    assert suggest_unit(["# One\n\ntext\n"] * 3) is None, "a title for each file"
    assert suggest_unit(["# comment\nx = 1\n\n# comment\ny = 2\n"]) is None
    assert suggest_unit([sentences(50), wrapped(30), verse(30), ""]) is None


def test_articles_are_documents_and_auto_warns(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(WIKITEXT)
    options = {"sources": (str(path),), "max_length": 16, "cache_dir": str(tmp_path)}
    tokenizer = TokenizerConfig(kind="bytes")
    data = load_text(DataConfig(**options, tokenizer=tokenizer, document="article", valid_fraction=0.5), progress=False)
    assert (data.n_train_documents, data.n_valid_documents) == (1, 1)
    assert f"documents   each article of {path}" in data.describe()
    hint = f"data.document=auto makes each line of {path} a document, although it has headings of WikiText articles"
    for document, warns in (("auto", True), ("line", False), ("article", False)):
        config = DataConfig(**options, tokenizer=tokenizer, document=document, valid_fraction=0.5)
        assert any(line.startswith(hint) for line in load_text(config, progress=False).warnings(1)) == warns


@pytest.mark.parametrize("line_end", ["", "\n"])
def test_records_that_are_lines_of_articles(tmp_path, line_end):
    path = tmp_path / "wiki.jsonl"
    path.write_text("\n".join(json.dumps({"text": line + line_end}) for line in WIKITEXT.split("\n")))
    source = open_source(str(path), DataConfig(document="article"))
    assert list(source.documents()) == ARTICLES
    lines = open_source(str(path), DataConfig())
    assert len(list(lines.documents())) == sum(bool(line.strip()) for line in WIKITEXT.split("\n"))
    assert source.fingerprint != lines.fingerprint
    with pytest.raises(UserError, match=r"has no effect without \.txt files"):
        Corpus(DataConfig(sources=(str(path),), document="heading"))
