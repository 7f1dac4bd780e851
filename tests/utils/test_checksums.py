"""Checksums of the files of a directory."""

import json
import os
import shutil

import pytest

from psann_jax.utils.checksums import CHECKSUMS, find_damage, write_checksums
from tests.support.damage import flip_bit


@pytest.fixture
def folder(tmp_path):
    """A directory with checksums."""
    for name, content in (
        ("top", b"abc"),
        ("params/d/x", b"\x00" * 3_000_000),
        ("training/y", b""),
        ("params/z", b"z"),
    ):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_checksums(tmp_path / "folder")
    return tmp_path / "folder"


def test_an_unchanged_directory_is_intact(folder):
    assert find_damage(folder) is None
    assert sorted(json.loads((folder / CHECKSUMS).read_text())) == ["params/d/x", "params/z", "top", "training/y"]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(("position", "name"), [(0, "top"), (2, "top"), (0, "params/d/x"), (2_999_999, "params/d/x")])
def test_a_changed_bit_is_found(folder, position, name):
    flip_bit(folder / name, position)
    assert find_damage(folder) == f"{name}: its checksum differs"


def test_wrong_sizes_and_missing_files_are_found(folder):
    os.truncate(folder / "params/z", 0)
    assert find_damage(folder) == "params/z: has 0 bytes instead of 1"
    (folder / "params/z").write_bytes(b"zz")
    assert find_damage(folder) == "params/z: has 2 bytes instead of 1"
    shutil.rmtree(folder / "params")
    assert find_damage(folder) == "params/d/x: No such file or directory"


def test_only_the_requested_parts_are_read(folder):
    flip_bit(folder / "params/d/x")
    assert find_damage(folder, ["training"]) is None
    assert find_damage(folder, ()) is None
    assert find_damage(folder, ["params"]) == "params/d/x: its checksum differs"
    flip_bit(folder / "top")
    assert find_damage(folder, ()) == "top: its checksum differs"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"top": 1}', b'{"top": {"bytes": 3}}', b"\xff\xfe"])
def test_unreadable_checksums_count_as_damage(folder, content):
    (folder / CHECKSUMS).write_bytes(content)
    assert find_damage(folder).startswith(f"{CHECKSUMS}: ")


def test_a_directory_without_checksums_counts_as_intact(folder):
    flip_bit(folder / "top")
    (folder / CHECKSUMS).unlink()
    assert find_damage(folder) is None


def test_a_failed_write_leaves_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (folder / CHECKSUMS).unlink()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_checksums(folder)
    assert not list(folder.glob(f"{CHECKSUMS}*"))
