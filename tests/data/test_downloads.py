"""Text and tokenizers in a bucket: the same as on a disk, copied once."""

import pytest

from psann_jax.config import Config, DataConfig, TokenizerConfig
from psann_jax.data.downloads import local_copies, local_file
from psann_jax.data.loader import load_text
from psann_jax.data.random_text import RandomText
from psann_jax.data.sources import open_source
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.tiny import sentences


@pytest.fixture(scope="module")
def server():
    with s3_bucket() as url:
        yield url


@pytest.fixture
def texts(server, tmp_path):
    """The URL of a directory with two texts and a file of another kind; the texts are also in tmp_path."""
    url = f"{server}/{tmp_path.name}"
    for i in range(2):
        content = "\n".join(sentences(100, i)).encode()
        bucket_at(url).write(f"text/{i}.txt", content)
        (tmp_path / f"{i}.txt").write_bytes(content)
    bucket_at(url).write("text/notes.md", b"no text")
    return url


def config(tmp_path, **settings):
    return DataConfig(cache_dir=str(tmp_path / "cache"), **settings)


@pytest.mark.parametrize("pattern", ["text/*.txt", "**/*.txt", "text/[01].txt"])
def test_a_glob_in_a_bucket_is_the_same_text_as_on_a_disk(texts, tmp_path, pattern):
    found = open_source(f"{texts}/{pattern}", config(tmp_path))
    expected = open_source(str(tmp_path / "*.txt"), config(tmp_path))
    assert list(found.documents()) == list(expected.documents())
    assert found.fingerprint == expected.fingerprint
    assert found.files == (f"{texts}/text/0.txt", f"{texts}/text/1.txt")


def test_an_object_whose_name_looks_like_a_glob(texts, tmp_path):
    bucket_at(texts).write("text/a[1].txt", b"the object\n")
    bucket_at(texts).write("text/a1.txt", b"another\n")
    assert list(open_source(f"{texts}/text/a[1].txt", config(tmp_path)).documents()) == ["the object"]


def test_objects_are_copied_once_and_again_when_they_change(texts, tmp_path, capsys):
    url = given_location(f"{texts}/text/0.txt", "data.sources")
    for n, content in ((1, None), (0, None), (1, b"new content\n")):
        if content:
            bucket_at(texts).write("text/0.txt", content)
        (path,) = local_copies(url, tmp_path / "cache", "data.sources", progress=True).values()
        assert capsys.readouterr().err.count(f"downloading {texts}/text/0.txt") == n
    assert (path.name, path.read_bytes()) == ("0.txt", b"new content\n")


@pytest.mark.parametrize("name", ["missing.txt", "text", "*.jsonl"])
def test_a_missing_object_is_refused_in_one_line(texts, tmp_path, name):
    with pytest.raises(UserError, match=r"^data.sources: there is no object s3://.*; name several with a glob"):
        open_source(f"{texts}/{name}", config(tmp_path))


def test_a_tokenizer_may_be_in_a_bucket(texts, tmp_path):
    settings = config(tmp_path, sources=(f"{texts}/text/*.txt",), max_length=16, valid_fraction=0.2)
    trained = load_text(settings, progress=False).tokenizer
    bucket_at(texts).write("tokenizer.json", trained.to_bytes())
    given = TokenizerConfig(path=f"{texts}/tokenizer.json")
    data = config(tmp_path, sources=settings.sources, max_length=16, tokenizer=given)
    assert load_text(data, progress=False).tokenizer.fingerprint == trained.fingerprint
    assert RandomText(Config(data=data)).tokenizer.vocab_size == trained.vocab_size


def test_one_file_is_needed_where_a_setting_names_one(texts, tmp_path):
    assert local_file(str(tmp_path / "0.txt"), tmp_path / "cache", "data.files") == tmp_path / "0.txt"
    with pytest.raises(UserError, match=r"^data.files: s3://.*: must be one object, but 2 have this name$"):
        local_file(f"{texts}/text/*.txt", tmp_path / "cache", "data.files")


def test_the_cache_must_be_on_a_disk(texts, tmp_path):
    settings = DataConfig(sources=(str(tmp_path / "*.txt"),), cache_dir="s3://bucket/cache")
    with pytest.raises(
        UserError, match=r"^data.cache_dir: is s3://bucket/cache, must be a path on a disk of this machine"
    ):
        load_text(settings, progress=False)
