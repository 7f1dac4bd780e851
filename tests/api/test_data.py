"""psannLMDataPrep: every keyword takes effect or raises an error."""

from pathlib import Path

import numpy as np
import pytest

from psann_jax import psannLMDataPrep
from psann_jax.utils.errors import UserError
from tests.support.tiny import prepared, sentences, write_text

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_parts_of_the_data():
    data = prepared(val_split=0.1, seed=3)
    assert data.vocab_size == 260
    assert data.pad_id == data.tokenizer.pad_id == 0
    assert len(data) == len(data.dataset) == data.text.n_train_windows
    assert data.dataset[0]["tokens"].shape == (33,)
    np.testing.assert_array_equal(data.dataset[-1]["tokens"], data.dataset[len(data) - 1]["tokens"])
    assert len(data.dataset[2:5]) == 3
    with pytest.raises(IndexError):
        data.dataset[len(data)]
    trained = "".join(data.tokenizer.decode(w["tokens"][1:]) for w in data.dataset)
    valid = "".join(data.tokenizer.decode(w["tokens"][1:][w["segment_ids"][1:] > 0]) for w in data.val_dataset)
    kept = [text for text in sentences() if text in valid and text not in trained]
    assert 10 <= len(kept) <= 30


def test_texts_and_paths_give_the_same_windows(tmp_path):
    path = tmp_path / "some text.txt"
    path.write_text("\n".join(sentences(50)) + "\n")
    options = {"tokenizer": "bytes", "max_length": 16}
    from_texts = psannLMDataPrep(sentences(50), **options)
    for from_path in (
        *(psannLMDataPrep(given, **options) for given in (path, str(path), [path], tmp_path / "some*.txt")),
        *(psannLMDataPrep(sources=given, **options) for given in (path, str(path), [path], [str(path)])),
        psannLMDataPrep(texts=sentences(50), **options),
    ):
        for a, b in zip(from_texts.dataset, from_path.dataset, strict=True):
            np.testing.assert_array_equal(a["tokens"], b["tokens"])


@pytest.mark.parametrize(
    "name",
    ["my notes.txt", "notes.csv", "a.py", "s3://bucket/key", "gs://b/*.jsonl", "./a", "~/b", "/c/d", "hf:a/b",
     "builtin:python", "README.md", "shard-01.parquet", "a.jsonl.zst", "folder"],
)  # fmt: skip
def test_strings_that_look_like_files_are_neither_texts_nor_files_by_guess(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for given in ([name], [name, "my other " + name], ["the sun sings", name]):
        with pytest.raises(UserError, match=r"texts\[\d\]: '.*' looks like a file name; use sources=\[") as error:
            psannLMDataPrep(given)
        assert "\n" not in str(error.value)
    data = psannLMDataPrep(texts=[name, "the sun sings"], tokenizer="bytes", max_length=4)
    assert data.config.sources[0].endswith("texts.jsonl")
    assert psannLMDataPrep(sources=[name])._config.sources == (name,)


def test_sentences_are_texts():
    texts = ["The sun sings.", "It costs 3.14 euros", "e.g. this", "a/b or c", "yes: no", "Readme", "two\nlines.txt"]
    data = psannLMDataPrep(texts, tokenizer="bytes", max_length=4)
    assert data.config.sources[0].endswith("texts.jsonl")


def test_equal_texts_share_a_file():
    first, second, other = (psannLMDataPrep(sentences(20, seed)) for seed in (0, 0, 1))
    assert first._config.sources == second._config.sources != other._config.sources


def test_unusual_texts_are_restored():
    texts = ["zwei\nZeilen\r\n", "  blanks  ", "日本語 \u2028 🙂", "null \0 byte", '{"text": 1}'] * 4
    data = psannLMDataPrep(texts, tokenizer="bytes", max_length=8, val_split=0.1)
    windows = [*data.dataset, *data.val_dataset]  # the copies of one text are the validation text
    tokens = np.concatenate([windows[0]["tokens"][:1], *(w["tokens"][1:] for w in windows)])
    text = bytes(i - 4 for i in tokens if i >= 4).decode(errors="replace")
    assert all(t in text for t in texts)


def test_every_data_option_takes_effect():
    data = prepared(pack_sequences=False, num_workers=1)
    assert (data.config.pack, data.config.num_workers) == (False, 1)
    assert len(data) > 180, "one document a row"
    trained = psannLMDataPrep(sentences(), "wordpiece", vocab_size=100, bos_token="[START]", min_frequency=1)
    assert trained.tokenizer.kind == "wordpiece"
    assert trained.config.tokenizer.bos_token == "[START]"


def test_a_given_tokenizer_is_used(tmp_path):
    first = psannLMDataPrep(sentences(), "bpe", vocab_size=300)
    second = psannLMDataPrep(sentences(100, seed=5), tokenizer=first.tokenizer)
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    first.tokenizer.save(tmp_path / "tokenizer.json")
    third = psannLMDataPrep(sentences(), tokenizer_model_path=tmp_path / "tokenizer.json")
    assert third.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_a_window_longer_than_the_text_is_shortened_with_a_note(capsys):
    data = psannLMDataPrep(["hello world", "goodnight moon"], tokenizer="bytes", max_length=1024)
    assert data.max_length < 16
    assert f"note: max_length is {data.max_length}, not 1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pack_sequences": False}, "val_data.pack_sequences: is False, must be True as in train_data"),
        ({"document_mask": False}, "val_data.document_mask: is False, must be True as in train_data"),
        ({"max_length": 16}, "val_data.max_length: is 16, must be 32 as in train_data; omit it"),
    ],
)
def test_validation_text_has_the_windows_of_the_training_text(given, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        prepared().validated_by(psannLMDataPrep(sentences(20), **given))
    assert prepared().validated_by(prepared(20)).max_length == 32
    shortened = prepared(2, max_length=64)
    assert shortened.validated_by(prepared(20, max_length=64)).max_length == shortened.max_length < 64


DATA_ERRORS = {
    "no text": (lambda: psannLMDataPrep([]), "texts: is empty"),
    "blank": (lambda: psannLMDataPrep([" ", "\n"]), "texts: contain only white space"),
    "number": (lambda: psannLMDataPrep(["a", 3]), "texts[1]: is of type int"),
    "not a list": (lambda: psannLMDataPrep(3), "texts: is int"),
    "a text": (lambda: psannLMDataPrep("the sun sings"), "texts: there is no file 'the sun sings'"),
    "no file": (lambda: psannLMDataPrep("/nowhere/a.txt").text, "/nowhere/a.txt"),
    "both": (lambda: psannLMDataPrep(["a text", Path("file")]), "texts[1]: 'file' is a path, but other items are not"),
    "nothing": (lambda: psannLMDataPrep(), "texts: is missing; give a list of texts, or sources=... for files"),
    "texts and sources": (lambda: psannLMDataPrep(texts=["a"], sources="b.txt"), "sources: cannot be used together"),
    "text": (lambda: psannLMDataPrep(texts="the sun sings"), "texts: is str, must be a list of texts"),
    "path as text": (lambda: psannLMDataPrep(texts=[Path("a.txt")]), "texts[0]: is of type PosixPath, must be a text"),
    "no sources": (lambda: psannLMDataPrep(sources=[]), "sources: is empty"),
    "source": (lambda: psannLMDataPrep(sources=["a", 3]), "sources[1]: is of type int, must be a path"),
    "missing source": (lambda: psannLMDataPrep(sources="a.txt").text, "sources: there is no file 'a.txt'"),
    "unknown format": (lambda: psannLMDataPrep(sources=__file__).text, "unknown file type; use .txt or .jsonl"),
    "one": (lambda: psannLMDataPrep(["the sun sings"]).text, "one document cannot be split"),
    "unknown": (lambda: prepared(max_lenght=3), "max_lenght: unknown argument, did you mean max_length?"),
    "renamed": (lambda: prepared(valid_fraction=0.1), "valid_fraction: unknown argument, it is called val_split here"),
    "range": (lambda: prepared(val_split=1.5), "val_split: is 1.5, must be between 0 and 1"),
    "type": (lambda: prepared(seed="x"), "seed: is 'x', must be of type int"),
    "tokenizer": (lambda: prepared(tokenizer="bepe"), "tokenizer: is 'bepe', did you mean bpe?"),
    "inactive": (lambda: prepared(vocab_size=300), "vocab_size: has no effect with the bytes tokenizer"),
    "twice": (
        lambda: psannLMDataPrep(sentences(), tokenizer=prepared().tokenizer, tokenizer_model_path="x"),
        "tokenizer_model_path: cannot be used together",
    ),
    "surrogate": (lambda: psannLMDataPrep(["a\ud800", "b"]), "texts[0]: has an unpaired surrogate"),
}


@pytest.mark.parametrize("case", DATA_ERRORS)
def test_an_error_in_data_names_the_cause(case):
    make, message = DATA_ERRORS[case]
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_files_are_data(tmp_path):
    write_text(tmp_path / "text.txt", n_lines=100)
    data = psannLMDataPrep(
        tmp_path / "text.txt",
        "bytes",
        max_length=16,
        document="file",
        valid_sources=(str(write_text(tmp_path / "valid.txt", n_lines=5, seed=1)),),
    )
    assert data.text.describe().count("1 documents") == 2
