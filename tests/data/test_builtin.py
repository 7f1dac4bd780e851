"""The built-in text from the standard library."""

import json
import os
import subprocess
import sys
import sysconfig

import pytest

from psann_jax.data import builtin
from psann_jax.utils.errors import UserError

REPORT = """
import json, sys
from psann_jax.config import DataConfig
from psann_jax.data.sources import open_source
source = open_source("builtin:python", DataConfig())
print(json.dumps([source.fingerprint, sorted({"turtle", "antigravity", "pydoc_data", "this"} & set(sys.modules))]))
"""


def report(hash_seed: str) -> list:
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    return json.loads(subprocess.run([sys.executable, "-c", REPORT], env=env, capture_output=True, check=True).stdout)


def test_text_is_large_and_has_english_and_code():
    documents = list(builtin.python_documents())
    assert sum(len(text.encode()) for text in documents) > 5_000_000
    assert any(text.startswith('The "assert" statement') for text in documents)
    assert any("class OrderedDict(dict):" in text for text in documents)
    assert not any("class TestCase_Test" in text or "test.support" in text.split("\n")[0] for text in documents)
    assert len(set(documents)) > 0.99 * len(documents)


def test_text_is_the_same_in_every_process_and_imports_no_modules():
    assert report("1") == report("2")
    assert report("1")[1] == []


def make_library(root, monkeypatch, **modules: str) -> None:
    for name, text in modules.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))


def test_order_and_skipped_modules(tmp_path, monkeypatch):
    make_library(
        tmp_path,
        monkeypatch,
        json__decoder="decoder",
        json__tool="tool",
        abc="abc",
        zlib="",
        json__tests__case="skipped",
        test__support="skipped",
        sitecustomize="skipped",
        encodings__cp1252="skipped",
        tkinter__ttk="skipped",
        pydoc_data__topics="topics = {'b': 'topic b', 'a': 'topic a', 'c': ' '}\n",
    )
    assert list(builtin.python_documents()) == ["topic a", "topic b", "abc", "decoder", "tool"]


def test_encoding_declarations_are_respected(tmp_path, monkeypatch):
    make_library(tmp_path, monkeypatch, abc="")
    (tmp_path / "abc.py").write_bytes(b"# coding: latin-1\n# \xe9\n")
    assert list(builtin.python_documents()) == ["# coding: latin-1\n# é\n"]


def test_a_library_without_sources_is_a_user_error(tmp_path, monkeypatch):
    make_library(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"^data.sources: builtin:python finds no Python sources in "):
        list(builtin.python_documents())
