"""Atomic writes and JSON files."""

from pathlib import Path

import pytest

from psann_jax.utils.errors import UserError
from psann_jax.utils.files import (
    atomic_path,
    atomic_write,
    read_json,
    require_writable,
    storage_errors,
    write_json,
)
from tests.support.permissions import forbidden


@pytest.mark.parametrize("fsync", [False, True])
def test_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "notes.txt"
    atomic_write(path, "old", fsync=fsync)
    atomic_write(path, "caf\u00e9\n", fsync=fsync)
    assert path.read_bytes() == "caf\u00e9\n".encode()
    atomic_write(path, b"\x00\xff", fsync=fsync)
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "plot.png"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"steps": 3, "loss": None})
    assert path.read_text() == '{\n  "steps": 3,\n  "loss": null\n}\n'
    assert read_json(path) == {"steps": 3, "loss": None}


def test_errors_name_the_path(tmp_path: Path) -> None:
    missing, damaged = tmp_path / "absent" / "a.json", tmp_path / "b.json"
    damaged.write_text('{"steps": 3')
    with pytest.raises(UserError, match=r"absent/a\.json: cannot be written: No such file"):
        write_json(missing, {})
    with pytest.raises(UserError, match=r"absent/a\.json: cannot be read: No such file"):
        read_json(missing)
    with pytest.raises(UserError, match=r"b\.json: is not valid JSON"):
        read_json(damaged)
    with pytest.raises(UserError, match=r"^out/c\.csv: cannot be written: disk full"), storage_errors("out/c.csv"):
        raise OSError("disk full")


def test_an_error_with_a_hint_is_one_line(tmp_path: Path) -> None:
    message = rf"^{tmp_path}: cannot be read: bad block; try again$"
    with pytest.raises(UserError, match=message), storage_errors(tmp_path, "read", hint="try again"):
        raise OSError("bad block\nDetail: more")


def test_a_directory_that_can_be_made_is_writable_and_one_in_a_forbidden_one_is_not(tmp_path):
    require_writable(tmp_path / "a" / "b", "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--out: .*/file: is a file, must be a directory$"):
        require_writable(tmp_path / "file" / "a", "--out")
    with forbidden(tmp_path / "secret") as path, pytest.raises(UserError, match=r"^--out: /.*: cannot be written$"):
        require_writable(path / "a", "--out")
