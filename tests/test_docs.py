"""The docs are true: their code runs, their commands and paths exist, their tables match the package."""

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import jax
import pytest

from psann_jax.cli.commands import COMMANDS, dispatch
from psann_jax.models import network as registry
from psann_jax.nn.partition import RULES, mesh_axes
from tests.support.tiny import write_text
from tests.support.variants import VARIANTS, variant

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "BENCHMARKS.md", "CONTRIBUTING.md")), *sorted(DOCS.rglob("*.md"))]
FOLDERS = ("psann_jax", "tests", "configs", "docs", "launch", "colab")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path):
    """The shell commands in the code blocks of a page, without comments, as lists of arguments."""
    lines = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.slow
def test_the_code_in_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_text(tmp_path / "notes.txt", n_lines=150)
    names = {}
    for block in blocks(DOCS / "api.md", "python"):
        exec(block, names)
    assert names["window"]["tokens"].shape == (33,)
    assert names["model"].config.train.steps == 5
    assert (tmp_path / "runs" / "notes" / "summary.json").exists()
    capsys.readouterr()
    for program, *arguments in commands(DOCS / "generation.md"):
        assert program == "psann-jax"
        dispatch(arguments)
    out = capsys.readouterr().out
    assert len(re.findall(r'^\{"prompt": "the sun"', out, re.MULTILINE)) == 3
    assert "bits_per_byte" in out
    assert (tmp_path / "runs" / "imported" / "checkpoints" / "step_0").is_dir()


@every_page
def test_commands_and_config_files_in_the_docs_exist(page):
    known = {name for group in COMMANDS.values() for name in group}
    for words in commands(page):
        if "psann-jax" in words:
            arguments = words[words.index("psann-jax") + 1 :]
            assert " ".join(arguments[: 2 if arguments[0] == "bench" else 1]) in known, words
        for word in words:
            if word.startswith("--config=") and word != "--config=...":
                assert (ROOT / word.removeprefix("--config=")).is_file(), words
        modules = [words[i + 2] for i, word in enumerate(words) if word == "python" and words[i + 1] == "-m"]
        assert all(importlib.util.find_spec(module) for module in modules), words


@every_page
def test_paths_in_the_docs_exist(page):
    """Paths of the repository in code spans, which may be globs, and the targets of relative links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    paths = [code for code in re.findall(r"`([\w./*]+/[\w./*]*)`", text) if code.split("/")[0] in FOLDERS]
    assert [path for path in paths if not list(ROOT.glob(path))] == []
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text)
    assert [link for pair in links for link in pair if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_of_the_site_stay_within_it(page):
    """The site consists of docs/ alone."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).resolve().is_relative_to(DOCS)] == []


def table(name, header):
    """The rows of the table with this header row in a page."""
    _, _, rest = (DOCS / name).read_text().partition(f"\n{header}\n")
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def split_over(axes):
    return " x ".join(mesh_axes(axes)) or "-"


def test_the_table_of_logical_axes_matches_the_rules():
    rows = {axis: mesh for axis, mesh, _ in table("training.md", "| logical axis | split over | dimension |")}
    assert rows == {field.name: split_over(getattr(RULES, field.name)) for field in dataclasses.fields(RULES)}


def test_the_table_of_parameters_matches_the_networks():
    """It lists all parameters of all networks, those with the same axes in one row."""
    parameters = {}
    for name in VARIANTS:
        for path, info in jax.tree_util.tree_leaves_with_path(registry.build(variant(name)).infos):
            parameters.setdefault(info.axes, set()).add(jax.tree_util.keystr(path, simple=True, separator="."))
    rows = [
        [
            ", ".join(f"`{name}`" for name in sorted(names)),
            ", ".join(axis or "-" for axis in axes),
            ", ".join(map(split_over, RULES.spec(axes))),
        ]
        for axes, names in parameters.items()
    ]
    assert sorted(table("training.md", "| parameters | logical axes | split over |")) == sorted(rows)
