"""Cache entries are complete or absent, and built once."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import pytest

from psann_jax.data.cache import cache_root, get_or_make, key_of
from psann_jax.utils.errors import UserError
from tests.support.permissions import forbidden


def write(text: str):
    return lambda path: (path / "content").write_text(text)


def test_an_entry_is_built_once(tmp_path):
    root = tmp_path / "new" / "cache"
    assert get_or_make(root, "entry", write("first")) == root / "entry"
    assert (get_or_make(root, "entry", write("second")) / "content").read_text() == "first"
    assert (get_or_make(root, "other", write("third")) / "content").read_text() == "third"


@pytest.mark.parametrize("error", [RuntimeError("failed"), KeyboardInterrupt()])
def test_a_failed_build_leaves_no_entry(tmp_path, error):
    def fail(path):
        write("half")(path)
        raise error

    with pytest.raises(type(error)):
        get_or_make(tmp_path, "entry", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert (get_or_make(tmp_path, "entry", write("whole")) / "content").read_text() == "whole"


def test_a_forbidden_cache_is_a_user_error(tmp_path):
    with (
        forbidden(tmp_path / "secret") as path,
        pytest.raises(UserError, match=r"cannot be written: Permission denied;"),
    ):
        get_or_make(path, "entry", write("a"))


KILLED = """
import os, signal, sys
from pathlib import Path
from psann_jax.data.cache import get_or_make
def make(path):
    (path / "content").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
get_or_make(Path(sys.argv[1]), "entry", make)
"""


def test_a_killed_build_leaves_no_entry_and_is_cleaned_up(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert (get_or_make(tmp_path, "entry", write("whole")) / "content").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["entry"]


def test_one_thread_builds_and_the_others_wait(tmp_path, capsys):
    made, results = [], []
    started = threading.Event()

    def make(path):
        made.append(path)
        write("content")(path)
        started.set()
        time.sleep(0.2)

    def get():
        results.append((get_or_make(tmp_path, "entry", make) / "content").read_text())

    threads = [threading.Thread(target=get) for _ in range(4)]
    threads[0].start()
    started.wait()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["content"] * 4
    assert len(made) == 1
    assert "waiting for another process" in capsys.readouterr().err


def test_a_complete_entry_is_found_without_opening_a_file(tmp_path, monkeypatch):
    get_or_make(tmp_path, "entry", write("content"))
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("opened a file"))
    assert get_or_make(tmp_path, "entry", write("other")) == tmp_path / "entry"


def damaged_unless(text: str):
    """Returns a check that reports damage unless the entry has this content."""
    return lambda path: None if (path / "content").read_text() == text else "another text"


def test_a_damaged_entry_is_rebuilt(tmp_path, capsys):
    get_or_make(tmp_path, "entry", write("old"))
    get_or_make(tmp_path, "entry", write("new"), find_damage=damaged_unless("old"))
    assert (tmp_path / "entry" / "content").read_text() == "old"
    assert capsys.readouterr().err == ""
    with open(tmp_path / "entry" / "content") as reader:
        get_or_make(tmp_path, "entry", write("new"), find_damage=damaged_unless("new"))
        assert reader.read() == "old"  # a process that has the old file open can still read it
    assert (tmp_path / "entry" / "content").read_text() == "new"
    assert capsys.readouterr().err == f"{tmp_path / 'entry'}: damaged (another text); rebuilding it\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["entry"]


def test_a_damaged_entry_is_rebuilt_once(tmp_path, capsys):
    get_or_make(tmp_path, "entry", write("old"))
    made = []

    def make(path):
        made.append(path)
        time.sleep(0.2)
        write("new")(path)

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(get_or_make, tmp_path, "entry", make, False, damaged_unless("new")) for _ in range(3)]
    assert [result.result() for result in results] == [tmp_path / "entry"] * 3
    assert len(made) == 1
    assert capsys.readouterr().err.count("rebuilding it") == 1


def test_an_entry_that_is_moved_aside_during_its_check_is_rebuilt(tmp_path):
    get_or_make(tmp_path, "entry", write("old"))

    def find_damage(path):
        if path.is_dir():
            path.rename(tmp_path / "aside")  # as another process does before it rebuilds the entry
        return damaged_unless("new")(path)

    assert get_or_make(tmp_path, "entry", write("new"), find_damage=find_damage) == tmp_path / "entry"
    assert (tmp_path / "entry" / "content").read_text() == "new"


def test_a_damaged_entry_that_cannot_be_rebuilt_is_removed(tmp_path):
    """Otherwise a later process might use it."""
    get_or_make(tmp_path, "entry", write("old"))

    def fail(path):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        get_or_make(tmp_path, "entry", fail, find_damage=damaged_unless("new"))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_unwritable_cache_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file/cache: cannot be written: Not a directory; .* data.cache_dir ") as e:
        get_or_make(tmp_path / "file" / "cache", "entry", write("content"))
    assert "\n" not in str(e.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the default directory is that of Linux")
def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert str(cache_root("")) == "/home/someone/.cache/psann_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_root("")) == "/home/someone/.cache/psann_jax"
    assert str(cache_root("~/texts")) == "/home/someone/texts"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root("") == tmp_path / "psann_jax"
    monkeypatch.chdir(tmp_path)
    assert cache_root("here") == tmp_path / "here"


def test_keys_follow_the_values():
    assert key_of("a", [1, 2.5], {"x": 1}) == key_of("a", [1, 2.5], {"x": 1})
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", ["b"]), key_of("b", "a")}) == 4


def test_without_a_home_directory_the_setting_is_named(monkeypatch):
    for root in (Path("~/.cache/psann_jax"), RuntimeError("no home"), KeyError("uid")):

        def user_cache_path(*args, root=root, **kwargs):
            if isinstance(root, Exception):
                raise root
            return root

        monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
        with pytest.raises(UserError, match=r"^data.cache_dir: there is no home directory for the default cache"):
            cache_root("")
    with pytest.raises(UserError, match=r"^data.cache_dir: ~nouser/x: there is no home directory of this user"):
        cache_root("~nouser/x")
