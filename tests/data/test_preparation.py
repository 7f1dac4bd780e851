"""Preparing a corpus: content, cache keys, interruptions, damage and storage failures."""

import gzip
import itertools
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from psann_jax.config import DataConfig
from psann_jax.data import piece_task, preparation
from psann_jax.data.corpus import Corpus
from psann_jax.data.preparation import prepare
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from psann_jax.data.tokenizer_models import TokenizersModel
from psann_jax.data.workers import run_in_processes
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit

TEXTS = [[*(f"line {i} é {'x' * (i % 7)}" for i in range(80)), "c" * 300], [f"other {i}" for i in range(40)]]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(preparation, "PIECE_BYTES", 200)


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path)


def make_corpus(tmp_path, **settings) -> Corpus:
    """Two sources: a plain file, which is cut into ranges, and a compressed one, which is a single piece."""
    (tmp_path / "0.txt").write_text("\n".join(TEXTS[0]))
    (tmp_path / "1.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS[1]).encode(), mtime=0))
    return open_corpus(tmp_path, **settings)


def open_corpus(tmp_path, **settings) -> Corpus:
    sources = (str(tmp_path / "0.txt"), str(tmp_path / "1.txt.gz"))
    return Corpus(DataConfig(sources=sources, **{"valid_fraction": 0.3} | settings), progress=False)


def wide_tokenizer() -> Tokenizer:
    """A tokenizer whose ids need 32 bits."""
    vocabulary = {f"<{i}>": i for i in range(65_600)} | {"<eos>": 65_600, "line": 65_601, "<unk>": 65_602}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(TokenizersModel(model.to_str()), {"pad": "<eos>", "bos": "<eos>", "eos": "<eos>", "unk": "<unk>"})


def documents(shard) -> list[list[int]]:
    offsets = np.asarray(shard.offsets)
    return [shard.tokens_N[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def content_of(cache) -> dict[str, bytes]:
    """Returns the files of the only prepared text of a cache."""
    return {path.name: path.read_bytes() for path in entry_of(cache).iterdir()}


def entry_of(cache):
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    return entry


@pytest.mark.parametrize(("batch", "piece"), [(1, 200), (12, 1 << 26), (1 << 21, 60)])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), wide_tokenizer()], ids=["uint16", "uint32"])
def test_shards_hold_every_document_with_bos_and_eos(tmp_path, corpus, monkeypatch, batch, piece, tokenizer):
    monkeypatch.setattr(piece_task, "_BATCH_CHARACTERS", batch)
    monkeypatch.setattr(preparation, "PIECE_BYTES", piece)
    prepared = prepare(corpus, tokenizer, tmp_path / "cache", progress=False)
    for shard, is_valid in ((prepared.train, False), (prepared.valid, True)):
        texts = [document.text for document in corpus.documents() if document.is_valid == is_valid]
        ids = tokenizer.encode_batch(texts)
        assert documents(shard) == [[tokenizer.bos_id, *text_ids, tokenizer.eos_id] for text_ids in ids]
        assert shard.tokens_N.dtype == (np.uint32 if tokenizer.vocab_size > 65_536 else np.uint16)
        assert shard.n_documents == len(texts)
        assert shard.n_tokens == len(np.asarray(shard.tokens_N))
        assert shard.text_bytes == sum(len(text.encode()) for text in texts)
    for is_valid, counts in ((False, prepared.source_documents), (True, [n for _, n in prepared.valid_names])):
        assert list(counts) == [
            sum(document.source == source and document.is_valid == is_valid for document in corpus.documents())
            for source in range(2)
        ]
    assert [name for name, _ in prepared.valid_names] == [str(tmp_path / "0.txt"), str(tmp_path / "1.txt.gz")]


def test_prepared_text_is_not_tokenised_again(tmp_path, corpus, monkeypatch):
    first = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("tokenised again"))
    os.utime(tmp_path / "0.txt", (10**9, 10**9))
    second = prepare(open_corpus(tmp_path), byte_tokenizer(), tmp_path / "cache", progress=False)
    assert documents(second.train) == documents(first.train)
    assert second.fingerprint == first.fingerprint


def test_fingerprint_follows_text_split_and_tokenizer(tmp_path, corpus, monkeypatch):
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
    first = fingerprint(make_corpus(tmp_path), byte_tokenizer())
    monkeypatch.setattr(preparation, "PIECE_BYTES", 300)
    assert fingerprint(open_corpus(tmp_path), byte_tokenizer()) == first
    assert first in found
    (tmp_path / "0.txt").write_text("another text\nof two lines")
    found.add(fingerprint(open_corpus(tmp_path), byte_tokenizer()))
    assert len(found) == 6


# --- interruptions and several processes -----------------------------------------------------------------

PREPARE = """
import os, signal, sys
from pathlib import Path
from psann_jax.data import preparation, shard_file, piece_task
from psann_jax.data.tokenizer import Tokenizer, byte_tokenizer
from tests.data.test_preparation import open_corpus

folder, kill_at, kill_in = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
preparation.PIECE_BYTES = 200
calls = []
def counted(function):
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
if kill_in == "encode":
    Tokenizer.encode_batch = counted(Tokenizer.encode_batch)
elif kill_in == "rename":
    Path.replace = counted(Path.replace)
elif kill_in == "write":
    piece_task.write_shard_file = counted(piece_task.write_shard_file)
prepared = preparation.prepare(open_corpus(folder), byte_tokenizer(), folder / "cache", False)
print(prepared.train.n_tokens, len(calls))
"""


def start(tmp_path, kill_at: int, kill_in: str = "encode") -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARE, str(tmp_path), str(kill_at), kill_in]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill_in", ["encode", "rename", "write"])
def test_a_kill_loses_at_most_one_file(tmp_path, corpus, kill_in):
    """Killed again and again, a preparation gets further each time, and ends with the files of an uninterrupted one."""
    prepare(corpus, byte_tokenizer(), tmp_path / "whole", progress=False)
    expected = content_of(tmp_path / "whole")
    n_files, calls = 0, []
    for kill_at in (1, 3, 4, 0):
        process = start(tmp_path, kill_at, kill_in)
        output, error = process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill_at else 0), error
        found = content_of(tmp_path / "cache")
        finished = {name: content for name, content in found.items() if name.endswith(".shard")}
        assert finished.items() <= expected.items()
        assert len(finished) >= n_files + (kill_at - 1 if kill_at else 0)
        n_files = len(finished)
        calls.append(kill_at or int(output.split()[1]))
    assert content_of(tmp_path / "cache") == expected
    n_tasks = len(expected) - 1
    assert sum(calls) <= n_tasks + 4, "files that were finished are not made again"


def test_of_several_processes_one_tokenises(tmp_path, corpus):
    processes = [start(tmp_path, kill_at=0) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    expected = prepare(corpus, byte_tokenizer(), tmp_path / "elsewhere", progress=False)
    calls = [output.split() for output, _ in outputs]
    assert {int(n) for n, _ in calls} == {expected.train.n_tokens}
    assert sorted(int(n) > 0 for _, n in calls) == [False, False, True]
    assert content_of(tmp_path / "cache") == content_of(tmp_path / "elsewhere")


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path, corpus):
    prepare(corpus, byte_tokenizer(), tmp_path / "one", progress=False)
    prepare(corpus, byte_tokenizer(), tmp_path / "two", progress=False, run=run_in_processes(2))
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


def test_an_error_in_a_process_is_that_of_its_piece(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo\n" * 50 + b"\xff\n")
    corpus = Corpus(DataConfig(sources=(str(tmp_path / "bad.txt"),), valid_fraction=0.5), progress=False)
    for run in (preparation.run_here, run_in_processes(2)):
        with pytest.raises(UserError, match=r"bad.txt: byte 0xff at offset 400 \(line 101\)"):
            prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False, run=run)


# --- failures --------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_user_error_and_leaves_no_parts_of_files(tmp_path, corpus):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cache.*: cannot be written: File too large; free some space") as e:
            prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(e.value)
    assert content_of(tmp_path / "cache") == {}
    assert prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False).train.n_documents > 0


def test_a_source_without_text(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    for settings in ({}, {"valid_sources": (str(tmp_path / "a.txt"),)}):
        sources = (str(tmp_path / "a.txt"), str(tmp_path / "blank.txt"))
        corpus = Corpus(DataConfig(sources=sources, **settings), progress=False)
        with pytest.raises(UserError, match=r"blank.txt: has no text, only blank lines"):
            prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)


DAMAGE = {
    "truncated": lambda entry: os.truncate(entry / "000001-0000.shard", 500),
    "empty": lambda entry: os.truncate(entry / "000001-0000.shard", 0),
    "missing": lambda entry: (entry / "000000-0000.shard").unlink(),
    "of another length": lambda entry: (entry / "000002-0000.shard").write_bytes(b"{}\n" * 2000),
    "no index": lambda entry: (entry / "index.json").unlink(),
    "index is no JSON": lambda entry: (entry / "index.json").write_text("{"),
    "index of another type": lambda entry: (entry / "index.json").write_text("[]"),
    "index cut off": lambda entry: os.truncate(entry / "index.json", 100),
    "index changed": lambda entry: flip_bit(entry / "index.json", 120),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_that_the_start_sees_is_repaired(tmp_path, corpus, capsys, damage):
    before = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    expected = content_of(tmp_path / "cache")
    DAMAGE[damage](entry_of(tmp_path / "cache"))
    after = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    assert content_of(tmp_path / "cache") == expected
    assert after.fingerprint == before.fingerprint
    shown = capsys.readouterr().err.splitlines()
    repairs = f"{entry_of(tmp_path / 'cache')}: files are damaged or missing; preparing them again"
    assert shown == ([] if damage == "no index" else [repairs])


def test_damage_that_reading_finds_is_repaired_by_the_next_start(tmp_path, corpus):
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    expected = content_of(tmp_path / "cache")
    path = entry_of(tmp_path / "cache") / "000001-0000.shard"
    flip_bit(path, -100)
    prepared = prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    with pytest.raises(UserError, match=r"000001-0000.shard: is damaged or missing; start again"):
        np.asarray(prepared.train.tokens_N)
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    assert content_of(tmp_path / "cache") == expected


def test_any_changed_byte_of_the_index_is_detected(tmp_path, corpus):
    prepare(corpus, byte_tokenizer(), tmp_path / "cache", progress=False)
    index = entry_of(tmp_path / "cache") / "index.json"
    whole = index.read_bytes()
    for position in range(0, len(whole), 11):
        flip_bit(index, position)
        found = preparation._find(index.parent)
        if found is not None:  # white space, or the format, which is for people
            assert [f.header for f in found] == [f.header for f in preparation._find(index.parent)]
            assert json.loads(index.read_bytes())["shards"] == json.loads(whole)["shards"]
        index.write_bytes(whole)
    assert preparation._find(index.parent) is not None
