"""Hashes of files, and their memory in the cache."""

import hashlib
import json
import multiprocessing
import os
import shutil

import pytest

from psann_jax.data import content
from psann_jax.data.content import MEMORY, file_contents
from psann_jax.utils.errors import UserError
from tests.support.damage import flip_bit

OLD = 1_600_000_000


@pytest.fixture
def settled(monkeypatch):
    """Lets files that are new be remembered."""
    monkeypatch.setattr(content, "_SETTLED_NS", -(10**12))


def sha256(path, root) -> str:
    (found,) = file_contents([path], root)
    return found.sha256


def count_reads(monkeypatch) -> list[int]:
    reads, read = [], content._sha256
    monkeypatch.setattr(content, "_sha256", lambda file, report: reads.append(1) or read(file, report))
    return reads


def test_the_hash_is_that_of_the_whole_content(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_BLOCK", 7)
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(100)))
    assert sha256(path, tmp_path / "cache") == hashlib.sha256(bytes(range(100))).hexdigest()


def test_it_changes_with_any_byte_and_not_with_time_or_name(tmp_path, settled):
    path, copy = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(b"x" * 10_000)
    first = sha256(path, tmp_path)
    shutil.copy(path, copy)
    os.utime(path, (OLD, OLD))
    assert sha256(path, tmp_path) == sha256(copy, tmp_path) == first
    stat = copy.stat()
    with open(copy, "r+b") as file:
        file.seek(5000)
        file.write(b"y")
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time are as before
    assert sha256(copy, tmp_path) != first


def test_a_file_is_read_once(tmp_path, monkeypatch, settled):
    reads = count_reads(monkeypatch)
    path = tmp_path / "a.txt"
    path.write_text("text")
    assert len({sha256(path, tmp_path / "cache") for _ in range(3)}) == 1
    assert len(reads) == 1
    path.write_text("texts")
    sha256(path, tmp_path / "cache")
    assert len(reads) == 2


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    path = tmp_path / "a.txt"
    path.write_text("text")
    for _ in range(2):
        sha256(path, tmp_path / "cache")
    assert len(reads) == 2


@pytest.mark.parametrize("position", range(1, 150, 7))
def test_a_damaged_memory_is_not_believed(tmp_path, monkeypatch, settled, position):
    path, root = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("text")
    first = sha256(path, root)
    flip_bit(root / MEMORY, position)
    reads = count_reads(monkeypatch)
    assert sha256(path, root) == first
    assert len(reads) == 1
    assert sha256(path, root) == first
    assert len(reads) == 1, "the new entry is believed"


@pytest.mark.parametrize("spoil", ["", "[]\n[1]\nnull\n{}\n", '["a", 1'])
def test_a_memory_with_other_content(tmp_path, settled, spoil):
    path = tmp_path / "a.txt"
    path.write_text("text")
    (tmp_path / MEMORY).write_text(spoil)
    first = sha256(path, tmp_path)
    assert sha256(path, tmp_path) == first == hashlib.sha256(b"text").hexdigest()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, settled):
    path = tmp_path / "a.txt"
    path.write_text("text")
    (tmp_path / "file").touch()
    assert sha256(path, tmp_path / "file" / "cache") == hashlib.sha256(b"text").hexdigest()


def _hash_all(folder, start):
    content._SETTLED_NS = -(10**12)
    start.wait()
    for i in range(50):
        sha256(folder / f"{i}.txt", folder)


def test_processes_may_remember_at_the_same_time(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.txt").write_text("x" * i)
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=_hash_all, args=(tmp_path, start)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    known = content._recall(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / MEMORY).read_text().splitlines() if line]
    assert len(known) == 50
    assert 50 <= len(lines) <= 150


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text")
    monkeypatch.setattr(content, "_sha256", lambda file, report: path.write_text("longer text") and "")
    with pytest.raises(UserError, match=r"a.txt: changed while it was read; start again$"):
        sha256(path, tmp_path)
