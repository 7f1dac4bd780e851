"""Whether runs read the same data, and whether trials would read validation data."""

import os

import pytest

from psann_jax.config import DataConfig
from psann_jax.config.sudoku import PuzzlesConfig
from psann_jax.experiments.data_check import data_fingerprint, shared_data
from tests.support.tiny import write_text


@pytest.fixture
def texts(tmp_path):
    """A data section of two files, a.txt to train on and b.txt to validate on, and a function that writes others."""

    def write(name, seed):
        return str(write_text(tmp_path / name, n_lines=50, seed=seed))

    write.data = DataConfig(sources=(write("a.txt", 0),), valid_sources=(write("b.txt", 1),), cache_dir=str(tmp_path))
    return write


def test_the_fingerprint_changes_with_the_content_of_any_file(texts):
    first = data_fingerprint(texts.data)
    assert first is not None
    for name in ("a.txt", "b.txt"):
        texts(name, 2)
        assert data_fingerprint(texts.data) != first
        texts(name, "ab".index(name[0]))
        assert data_fingerprint(texts.data) == first


def test_the_fingerprint_of_puzzles_is_that_of_their_files(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_text("one")
    data = PuzzlesConfig(files=(str(path),), cache_dir=str(tmp_path))
    first = data_fingerprint(data)
    path.write_text("two")
    assert None not in (first, data_fingerprint(data))
    assert data_fingerprint(data) != first
    assert data_fingerprint(PuzzlesConfig()) == data_fingerprint(PuzzlesConfig())


@pytest.mark.parametrize("change", [{"stream": True}, {"sources": ("/no/such/file.txt",)}])
def test_data_without_a_fingerprint(texts, change):
    assert data_fingerprint(DataConfig(**{**vars(texts.data), **change})) is None


def test_separate_files_share_nothing(texts, tmp_path):
    assert shared_data(texts.data) == ""
    assert shared_data(PuzzlesConfig(files=("a.csv",), valid_files=("b.csv",))) == "", "missing files are no error here"
    assert shared_data(DataConfig(sources=("hf:a/b@train",), valid_sources=("hf:a/b@validation",))) == ""


@pytest.mark.parametrize(
    ("sources", "valid_sources", "found"),
    [
        ("{}/a.txt", "{}/a.txt", "{}/a.txt"),
        ("{}/*.txt", "{}/b.txt", "{}/b.txt"),
        ("{}/a.txt", "{}/c.txt", "{}/a.txt"),
        ("{}/a.txt", "{}/../{name}/a.txt", "{}/a.txt"),
        ("{}/a.txt", "{}/copy.txt", "the content of {}/a.txt and {}/copy.txt"),
        ("hf:a/b", "hf:a/b@train", "hf:a/b"),
        ("builtin:python", "builtin:python", "builtin:python"),
    ],
)
def test_common_files_and_contents_are_found(texts, tmp_path, sources, valid_sources, found):
    os.symlink("a.txt", tmp_path / "c.txt")
    texts("copy.txt", 0)
    sources, valid_sources, found = (
        text.format(*[tmp_path] * 2, name=tmp_path.name) for text in (sources, valid_sources, found)
    )
    assert shared_data(DataConfig((sources,), valid_sources=(valid_sources,), cache_dir=str(tmp_path))) == found


def test_puzzles_share_files_too(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_text("one")
    assert shared_data(PuzzlesConfig(files=(str(path),), valid_files=(str(path),))) == str(path)
