"""The code in docs/api.md and docs/generation.md runs as it stands, one after the other."""

import importlib
import re
import shlex
from pathlib import Path

from tiny import write_text

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)


def test_the_code_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_text(tmp_path / "notes.txt", n_lines=150)
    names = {}
    for block in blocks("api.md", "python"):
        exec(block, names)
    assert names["window"]["tokens"].shape == (33,)
    assert names["model"].config.train.steps == 5
    assert (tmp_path / "runs" / "notes" / "summary.json").exists()
    capsys.readouterr()
    commands = [line for block in blocks("generation.md", "sh") for line in block.splitlines()]
    for command in commands:
        _, _, module, *flags = shlex.split(command)
        importlib.import_module(module).main(flags)
    out = capsys.readouterr().out
    assert len(re.findall(r'^\{"prompt": "the sun"', out, re.MULTILINE)) == 3
    assert "bits_per_byte" in out
    assert (tmp_path / "runs" / "imported" / "checkpoints" / "step_0").is_dir()
