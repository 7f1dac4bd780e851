"""The training and validation documents, and the sample that tokenizers are trained on."""

import gzip
import itertools

import pytest

from psann_jax.config import ConfigError, DataConfig
from psann_jax.data import corpus as corpus_module
from psann_jax.data.corpus import Corpus
from psann_jax.utils.errors import UserError


def make_corpus(tmp_path, *files: list[str], **settings) -> Corpus:
    names = []
    for i, texts in enumerate(files):
        names.append(tmp_path / f"{i}.txt")
        names[-1].write_text("\n".join(texts))
    return Corpus(DataConfig(sources=tuple(map(str, names)), **settings), progress=False)


def test_documents_come_in_order_with_source_and_split(tmp_path):
    files = [[f"{'ab'[i]} {j}" for j in range(300)] for i in range(2)]
    corpus = make_corpus(tmp_path, *files, valid_fraction=0.2)
    documents = list(corpus.documents())
    assert [text for _, _, text in documents] == [*files[0], *files[1]]
    assert [source for source, _, _ in documents] == [0] * 300 + [1] * 300
    assert all(40 < sum(valid for source, valid, _ in documents if source == i) < 80 for i in range(2))


def test_the_split_stays_when_text_is_added_and_copies_are_on_one_side(tmp_path):
    texts = [f"document {i}" for i in range(200)]
    before = {text: valid for _, valid, text in make_corpus(tmp_path, texts, valid_fraction=0.2).documents()}
    more = ["a new first one", *texts, *texts[:50], *(f"new {i}" for i in range(100))]
    after = list(make_corpus(tmp_path, more, valid_fraction=0.2).documents())
    assert all(before.get(text, valid) == valid for _, valid, text in after)


def test_fixed_validation_sources(tmp_path):
    (tmp_path / "v.txt").write_text("v1\nv2")
    corpus = make_corpus(tmp_path, ["one"], ["two", "three"], valid_sources=(str(tmp_path / "v.txt"),))
    assert [(valid, text) for _, valid, text in corpus.documents()] == [
        (False, "one"), (False, "two"), (False, "three"), (True, "v1"), (True, "v2"),
    ]  # fmt: skip


@pytest.mark.parametrize("n_bytes", [0, 1, 500, 777, 10**9])
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_sample_is_training_text_of_the_requested_size(tmp_path, monkeypatch, n_bytes, piece):
    monkeypatch.setattr(corpus_module, "SAMPLE_PIECE_BYTES", piece)
    corpus = make_corpus(tmp_path, [f"document {i} é" for i in range(100)], valid_fraction=0.3)
    training = [text for _, valid, text in corpus.documents() if not valid]
    sample = list(corpus.training_sample(n_bytes))
    size = sum(len(text.encode()) for text in sample)
    if n_bytes in (0, 10**9):
        assert sample == training
    else:
        assert n_bytes - 1 <= size <= n_bytes  # an é that would be cut in half is dropped
        assert sum(text in training for text in sample) >= len(sample) - 1
        assert all(any(t.startswith(text) for t in training) for text in sample)
        assert list(corpus.training_sample(n_bytes)) == sample


def test_sample_is_drawn_from_the_whole_text_and_reads_a_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "SAMPLE_PIECE_BYTES", 100)
    corpus = make_corpus(tmp_path, [f"{i:04d}" for i in range(4000)], valid_fraction=0.1)
    assert corpus.split.threshold
    read, read_piece = [], corpus_module.read_piece
    monkeypatch.setattr(corpus_module, "read_piece", lambda piece: read.append(piece) or read_piece(piece))
    drawn = [int(text) for text in corpus.training_sample(800)]
    assert len(drawn) == 200
    assert min(drawn) < 400
    assert max(drawn) > 3600
    assert 800 < sum(piece.n_bytes for piece in read) < 6000
    near = sum(abs(a - b) == 1 for a, b in itertools.pairwise(drawn))
    assert near < 100, "most neighbours were not drawn together"


def test_a_sample_of_a_large_compressed_file_is_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "SAMPLE_PIECE_BYTES", 100)
    texts = [f"{i:05d}" for i in range(20_000)]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    corpus = Corpus(DataConfig(sources=(str(tmp_path / "a.txt.gz"),)), progress=False)
    drawn = [int(text) for text in corpus.training_sample(1000)]
    assert len(drawn) == 200
    assert max(drawn) < 2000


@pytest.mark.parametrize("n_bytes", [20_000, 100_000, 200_000])
def test_a_sample_of_compressed_files_has_text_of_each(tmp_path, n_bytes):
    for name in "ab":
        text = "\n".join(f"{name} again and again and again {i}" for i in range(5000))
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    names = tuple(str(tmp_path / f"{name}.txt.gz") for name in "ab")
    corpus = Corpus(DataConfig(sources=names, document="line"), progress=False)
    sample = list(corpus.training_sample(n_bytes))
    assert sum(len(text.encode()) for text in sample) == n_bytes
    assert 0.2 < sum(text.startswith("a") for text in sample) / len(sample) < 0.8
    training = [text for _, valid, text in corpus.documents() if not valid]
    assert sorted(corpus.training_sample(10**6)) == sorted(training)


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


@pytest.mark.parametrize("texts", [["one"], ["one", "one"], ["", "  "]])
def test_too_little_text_is_a_user_error(tmp_path, texts):
    with pytest.raises(UserError, match=r"^data.valid_sources: is empty, but one document cannot be split|no text"):
        list(make_corpus(tmp_path, texts).documents())


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
