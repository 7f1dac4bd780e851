"""Token shards: content, cache keys and storage failures."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from psann_jax.config import DataConfig
from psann_jax.data import shards
from psann_jax.data.corpus import Corpus
from psann_jax.data.shards import prepare
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.utils.errors import UserError

TEXTS = [["a", "bé", "c" * 300, "two words", "five"], ["x", "yy", "zzz", "wwww"]]


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path)


def make_corpus(tmp_path, **settings) -> Corpus:
    for i, texts in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text("\n".join(texts))
    sources = tuple(str(tmp_path / f"{i}.txt") for i in range(2))
    return Corpus(DataConfig(sources=sources, **{"valid_fraction": 0.3} | settings), progress=False)


class WideTokenizer(Tokenizer):
    """A byte tokenizer whose ids need 32 bits."""

    def __init__(self):
        model = byte_tokenizer()._model
        super().__init__(model, byte_tokenizer()._names)
        self.vocab_size = 70_000

    def encode_batch(self, texts):
        return [[i + 65_600 for i in ids] for ids in super().encode_batch(texts)]


def documents(shard) -> list[list[int]]:
    return [shard.tokens_N[a:b].tolist() for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)]


@pytest.mark.parametrize("batch", [1, 12, 1 << 21])
@pytest.mark.parametrize(("tokenizer", "dtype"), [(byte_tokenizer(), np.uint16), (WideTokenizer(), np.uint32)])
def test_shards_hold_every_document_with_bos_and_eos(tmp_path, corpus, monkeypatch, batch, tokenizer, dtype):
    monkeypatch.setattr(shards, "_BATCH_CHARACTERS", batch)
    prepared = prepare(corpus, tokenizer, tmp_path / "cache", progress=False)
    for shard, is_valid in ((prepared.train, False), (prepared.valid, True)):
        texts = [document.text for document in corpus.documents("reading") if document.is_valid == is_valid]
        assert documents(shard) == [[1, *tokenizer.encode_batch([text])[0], 2] for text in texts]
        assert shard.tokens_N.dtype == dtype
        assert shard.n_documents == len(texts)
        assert shard.n_tokens == len(shard.tokens_N)
        assert shard.text_bytes == sum(len(text.encode()) for text in texts)
    assert sum(prepared.source_documents) == prepared.train.n_documents == 6
    assert prepared.source_documents == tuple(
        sum(document.source == source and not document.is_valid for document in corpus.documents("reading"))
        for source in range(2)
    )


def test_a_range_of_documents(tmp_path, corpus):
    train = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False).train
    assert documents(train.documents(2, 5)) == documents(train)[2:5]
    assert documents(train.documents(0, 0)) == []


def test_shards_in_the_cache_are_not_tokenised_again(tmp_path, corpus, monkeypatch):
    first = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("tokenised again"))
    second = prepare(make_corpus(tmp_path), byte_tokenizer(), tmp_path / "cache", progress=False)
    assert documents(second.train) == documents(first.train)
    assert second.fingerprint == first.fingerprint


def test_fingerprint_follows_text_split_and_tokenizer(tmp_path, corpus):
    def fingerprint(c: Corpus, t: Tokenizer) -> str:
        return prepare(c, t, tmp_path / "cache", progress=False).fingerprint

    other = Tokenizer(byte_tokenizer()._model, dict.fromkeys(("pad", "bos", "eos", "unk"), "<unk>"))
    found = {
        fingerprint(corpus, byte_tokenizer()),
        fingerprint(corpus, other),
        fingerprint(make_corpus(tmp_path, split_seed=1), byte_tokenizer()),
        fingerprint(make_corpus(tmp_path, valid_fraction=0.6), byte_tokenizer()),
        fingerprint(make_corpus(tmp_path, document="file"), byte_tokenizer()),
    }
    (tmp_path / "0.txt").write_text("another text\nof two lines")
    sources = tuple(str(tmp_path / f"{i}.txt") for i in range(2))
    edited = Corpus(DataConfig(sources=sources, valid_fraction=0.3), progress=False)
    found.add(fingerprint(edited, byte_tokenizer()))
    assert len(found) == 6


PREPARE = """
import os, signal, sys
from pathlib import Path
from psann_jax.config import DataConfig
from psann_jax.data import shards
from psann_jax.data.corpus import Corpus
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
shards._BATCH_CHARACTERS = 1
calls, encode = [], Tokenizer.encode_batch
def encode_batch(self, texts):
    calls.append(1)
    if len(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, texts)
Tokenizer.encode_batch = encode_batch
sources = tuple(str(folder / f"{i}.txt") for i in range(2))
corpus = Corpus(DataConfig(sources=sources, valid_fraction=0.3), progress=False)
print(shards.prepare(corpus, byte_tokenizer(), folder / "cache", False).train.tokens_N.tobytes().hex(), len(calls))
"""


def start(tmp_path, kill_at: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(tmp_path), str(kill_at)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_leaves_no_shards(tmp_path, corpus):
    process = start(tmp_path, kill_at=4)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    cache = tmp_path / "cache"
    assert [path.name.partition(".tmp-")[1] for path in cache.iterdir() if path.is_dir()] == [".tmp-"]
    prepared = prepare(corpus, byte_tokenizer(), cache, progress=False)
    assert prepared.train.n_documents == 6
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_of_several_processes_one_tokenises(tmp_path, corpus):
    processes = [start(tmp_path, kill_at=0) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    expected = prepare(corpus, byte_tokenizer(), tmp_path / "elsewhere", progress=False).train.tokens_N
    assert {tokens for tokens, _ in outputs} == {expected.tobytes().hex()}
    assert sorted(int(calls) for _, calls in outputs) == [0, 0, 9]


def test_a_full_disk_is_a_user_error_and_leaves_no_shards(tmp_path, corpus):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cache.*: cannot be written: File too large; free some space") as e:
            prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(e.value)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False).train.n_documents == 6


def test_text_that_cannot_be_read_leaves_no_shards(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo\n\xff\n")
    corpus = Corpus(DataConfig(sources=(str(tmp_path / "bad.txt"),)), progress=False)
    with pytest.raises(UserError, match=r"bad.txt: byte 0xff at offset 8 \(line 3\)"):
        prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def entry_of(cache):
    """Returns the only entry of a cache."""
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    return entry


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncate": (lambda entry: os.truncate(entry / "train.tokens", 10), "train.tokens has 10 bytes for 3"),
    "counts": (lambda entry: (entry / "counts.json").write_text("{"), "Expecting property name"),
    "counts of another type": (lambda entry: (entry / "counts.json").write_text("[]"), "list indices"),
    "offsets": (lambda entry: np.save(entry / "train.offsets.npy", np.zeros(3, np.int64)), "train.offsets.npy has 3"),
    "missing": (lambda entry: (entry / "valid.tokens").unlink(), "valid.tokens: No such file or directory"),
    "first bit": (lambda entry: flip(entry / "train.tokens", 0), "train.tokens: its checksum differs"),
    "last bit": (lambda entry: flip(entry / "valid.tokens", -1), "valid.tokens: its checksum differs"),
    "bit of an offset": (
        lambda entry: flip(entry / "valid.offsets.npy", -8),
        "valid.offsets.npy: its checksum differs",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_rebuilt(tmp_path, corpus, capsys, damage):
    cache = tmp_path / "cache"
    before = prepare(corpus, byte_tokenizer(), cache, progress=False)
    expected = documents(before.train), documents(before.valid), before.source_documents
    entry = entry_of(cache)
    spoil, reason = DAMAGE[damage]
    spoil(entry)
    assert capsys.readouterr().err == ""
    after = prepare(corpus, byte_tokenizer(), cache, progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{entry}: damaged ({reason}")
    assert line.endswith("); rebuilding it")
    assert (documents(after.train), documents(after.valid), after.source_documents) == expected
    assert after.fingerprint == before.fingerprint
    assert entry_of(cache) == entry  # the damaged entry was removed
    prepare(corpus, byte_tokenizer(), cache, progress=False)
    assert capsys.readouterr().err == ""


def test_any_changed_character_of_the_counts_is_detected(tmp_path, corpus, capsys):
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    counts = entry_of(tmp_path / "cache") / "counts.json"
    whole = counts.read_bytes()
    for position in range(len(whole)):
        flip(counts, position)
        if json_or_none(counts) != json.loads(whole):  # otherwise the changed bit was in white space
            assert shards._find_damage(counts.parent) is not None, counts.read_bytes()
        counts.write_bytes(whole)
    assert shards._find_damage(counts.parent) is None


def json_or_none(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_shards_without_checksums_are_used(tmp_path, corpus, monkeypatch):
    """Versions without checksums wrote them, and their runs must still resume."""
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    counts = entry_of(tmp_path / "cache") / "counts.json"
    content = json.loads(counts.read_text())
    del content["crc32"], content["valid_names"]
    counts.write_text(json.dumps(content))
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("tokenised again"))
    assert prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False).train.n_documents == 6


def test_files_damaged_after_the_check_are_a_user_error(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(shards, "_find_damage", lambda path: None)
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    entry = entry_of(tmp_path / "cache")
    os.truncate(entry / "train.tokens", 10)
    with pytest.raises(UserError, match=f"^{entry}: the prepared text is damaged .*; delete this directory") as e:
        prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    assert "\n" not in str(e.value)


def test_counts_are_plain_json(tmp_path, corpus):
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    assert json.loads((entry_of(tmp_path / "cache") / "counts.json").read_text())["valid"]["documents"] == 3
