"""The split into training and validation documents, and the sample that tokenizers are trained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import ConfigError, DataConfig
from psann_jax.data.corpus import Corpus, choose_validation
from psann_jax.utils.errors import UserError


def make_corpus(tmp_path, *files: list[str], **settings) -> Corpus:
    names = []
    for i, texts in enumerate(files):
        names.append(tmp_path / f"{i}.txt")
        names[-1].write_text("\n".join(texts))
    return Corpus(DataConfig(sources=tuple(map(str, names)), **settings), progress=False)


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.integers(1, 4), st.floats(0.01, 0.99), st.integers(0, 2**70))
def test_validation_documents_are_spread_evenly_over_lengths(n, n_sources, fraction, seed):
    rng = np.random.default_rng(seed)
    lengths, source = rng.integers(1, 1000, n), np.sort(rng.integers(0, n_sources, n))
    is_valid = choose_validation(source, lengths, fraction, seed)
    assert 1 <= is_valid.sum() <= len(lengths) - 1
    expected = min(max(round(fraction * len(lengths)), 1), len(lengths) - 1)
    assert is_valid.sum() == expected
    # Sorted by source and length, every prefix of the documents has the expected number of them, up to one.
    n_drawn = np.cumsum(is_valid[np.lexsort((lengths, source))])
    n_expected = expected / len(lengths) * np.arange(1, len(lengths) + 1)
    assert np.abs(n_drawn - n_expected).max() <= 1


def test_the_split_depends_on_the_seed_only():
    source, lengths = np.zeros(1000, int), np.arange(1000) % 37
    draws = [choose_validation(source, lengths, 0.1, seed) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    # A change of these values would move documents between training and validation of existing runs.
    assert np.flatnonzero(draws[0])[:8].tolist() == [6, 14, 17, 20, 22, 23, 49, 66]


def test_documents_come_in_order_with_source_and_split(tmp_path):
    files = [[f"{'ab'[i]} {j}" for j in range(30)] for i in range(2)]
    corpus = make_corpus(tmp_path, *files, valid_fraction=0.2)
    documents = list(corpus.documents("reading"))
    assert [text for _, _, text, _ in documents] == [*files[0], *files[1]]
    assert [source for source, *_ in documents] == [0] * 30 + [1] * 30
    assert [sum(valid for source, valid, *_ in documents if source == i) for i in range(2)] == [6, 6]


def test_fixed_validation_sources(tmp_path):
    (tmp_path / "v.txt").write_text("v1\nv2")
    corpus = make_corpus(tmp_path, ["one"], ["two", "three"], valid_sources=(str(tmp_path / "v.txt"),))
    assert [(valid, text) for _, valid, text, _ in corpus.documents("reading")] == [
        (False, "one"), (False, "two"), (False, "three"), (True, "v1"), (True, "v2"),
    ]  # fmt: skip


@pytest.mark.parametrize("n_bytes", [0, 1, 500, 777, 10**9])
def test_sample_is_training_text_of_the_requested_size(tmp_path, n_bytes):
    corpus = make_corpus(tmp_path, [f"document {i} é" for i in range(100)], valid_fraction=0.3)
    training = [text for _, valid, text, _ in corpus.documents("reading") if not valid]
    sample = list(corpus.training_sample(n_bytes))
    size = sum(len(text.encode()) for text in sample)
    if n_bytes in (0, 10**9):
        assert sample == training
    else:
        assert n_bytes - 1 <= size <= n_bytes  # an é that would be cut in half is dropped
        assert sum(text in training for text in sample) >= len(sample) - 1
        assert all(any(t.startswith(text) for t in training) for text in sample)
        assert list(corpus.training_sample(n_bytes)) == sample


def test_sample_is_drawn_from_the_whole_text(tmp_path):
    corpus = make_corpus(tmp_path, [f"{i:04d}" for i in range(1000)], valid_fraction=0.1)
    drawn = [int(text) for text in corpus.training_sample(400)]
    assert len(drawn) == 100
    assert min(drawn) < 150
    assert max(drawn) > 850


def test_fingerprint_follows_the_text_and_the_split(tmp_path):
    files = [["one", "two", "three"], ["four"]]
    first = make_corpus(tmp_path, *files).fingerprint
    assert make_corpus(tmp_path, *files).fingerprint == first
    others = [
        make_corpus(tmp_path, *files, valid_fraction=0.5),
        make_corpus(tmp_path, *files, split_seed=3),
        make_corpus(tmp_path, *files, valid_sources=(str(tmp_path / "0.txt"),)),
        make_corpus(tmp_path, *files[::-1]),
        make_corpus(tmp_path, files[0], ["five"]),
    ]
    assert len({first, *(corpus.fingerprint for corpus in others)}) == 6


@pytest.mark.parametrize("texts", [["one", "two"], ["one", "two", "three", "four"], ["one", "2", "three"]])
def test_text_that_changes_between_two_passes_is_a_user_error(tmp_path, texts):
    corpus = make_corpus(tmp_path, ["one", "two", "three"])
    assert len(corpus.is_valid) == 3
    (tmp_path / "0.txt").write_text("\n".join(texts))
    with pytest.raises(UserError, match=r"0.txt: changed while it was read"):
        list(corpus.documents("reading"))


@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        (["one"], {}, r"^data.valid_sources: is empty, but one document cannot be split"),
        (["", "  "], {}, r"0.txt: has no text, only blank lines"),
    ],
)
def test_too_little_text_is_a_user_error(tmp_path, texts, settings, expected):
    with pytest.raises(UserError, match=expected):
        list(make_corpus(tmp_path, texts, **settings).documents("reading"))


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.split_seed: is -1"):
        make_corpus(tmp_path, ["a"], split_seed=-1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"text_field": "body"}, "text_field"),
        ({"weights": (2.0,)}, "weights"),
        ({"valid_sources": ("builtin:python",), "valid_fraction": 0.5}, "valid_fraction"),
        ({"sources": ("builtin:python",), "document": "file"}, "document"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, settings, name):
    (tmp_path / "a.txt").write_text("one\ntwo")
    with pytest.raises(ConfigError, match=f"^data.{name}: has no effect .*; leave it at "):
        Corpus(DataConfig(**{"sources": (str(tmp_path / "a.txt"),)} | settings), progress=False)


def test_progress_goes_to_stderr_and_can_be_switched_off(tmp_path, capsys):
    corpus = make_corpus(tmp_path, ["one", "two"])
    list(corpus.documents("reading"))
    assert capsys.readouterr() == ("", "")
    corpus = Corpus(DataConfig(sources=(str(tmp_path / "0.txt"),)), progress=True)
    list(corpus.documents("tokenising"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokenising" in err
