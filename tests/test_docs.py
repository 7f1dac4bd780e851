"""The docs are true: their code runs, their commands and paths exist, their tables match the package."""

import dataclasses
import gzip
import importlib.util
import json
import os
import random
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from psann_jax.cli.commands import COMMANDS
from psann_jax.models import network as registry
from psann_jax.nn.partition import RULES, mesh_axes
from tests.support.doc_commands import (
    ROOT,
    blocks,
    clone,
    lines,
    needed_runs,
    obstacle,
    shortened,
    stands_alone,
    training,
)
from tests.support.tiny import sentences, write_text
from tests.support.variants import VARIANTS, variant

DOCS = ROOT / "docs"
HOWTO = DOCS / "howto.md"
PAGES = [*(ROOT / name for name in ("README.md", "BENCHMARKS.md", "CONTRIBUTING.md")), *sorted(DOCS.rglob("*.md"))]
FOLDERS = ("psann_jax", "tests", "configs", "docs", "launch", "colab")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(path):
    """The shell commands in the code blocks of a page, without comments, as lists of arguments."""
    text = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in text if (words := shlex.split(line, comments=True))]


# --- every command runs as it is written --------------------------------------------------------------

EVERY_COMMAND = [(page, line) for page in PAGES for line in lines(page)]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The directory of a user with a clone of the repository and some texts and puzzles."""
    clone(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "books").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = tmp_path / "bin" / "psann-jax"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m psann_jax "$@"\n')
    program.chmod(0o755)
    paths = (str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(paths))
    names = ("notes.txt", "wikitext-2.train.txt", "wikitext-2.valid.txt", "books/one.txt", "shakespeare.txt")
    for seed, name in enumerate(names):
        write_text(tmp_path / name, seed=seed)
    pairs = [{"question": f"{text}?", "answer": text[::-1]} for text in sentences(400, 7)]
    turns = ((("user", pair["question"]), ("assistant", pair["answer"])) for pair in pairs)
    chats = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    for name, records in (("questions.jsonl", pairs), ("chat.jsonl", chats)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    prose = [" ".join(sentences(6, seed)) for seed in range(60)]
    (tmp_path / "frankenstein.txt").write_text("\n\n".join(textwrap.fill(text, 70) for text in prose) + "\n")
    (tmp_path / "books" / "two.txt.gz").write_bytes(gzip.compress("\n".join(sentences(400, 9)).encode()))
    (tmp_path / "notes.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in sentences(400, 8)))
    for grid, name in zip(GRIDS, ("train.csv", "test.csv"), strict=True):
        (tmp_path / name).write_text("question,answer,rating\n" + "".join(puzzle(grid, i) for i in range(10)))
    return tmp_path


# Two grids that no symmetry maps to each other: a grid of the validation puzzles may not be in the training puzzles.
GRIDS = (
    "".join(str((3 * (row % 3) + row // 3 + column) % 9 + 1) for row in range(9) for column in range(9)),
    "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
)


def puzzle(grid, seed):
    """A line of a file of puzzles: the grid with its digits permuted and an empty row, which the columns determine."""
    digits, row = random.Random(seed).sample("123456789", 9), seed % 9
    answer = "".join(digits[int(digit) - 1] for digit in grid)
    question = "".join("." if cell // 9 == row else digit for cell, digit in enumerate(answer))
    return f"{question},{answer},{(0, 1, 5, 20, 60)[seed % 5]}\n"


def succeeds(script, directory):
    done = subprocess.run(["bash", "-ec", script], cwd=directory, capture_output=True, text=True, timeout=900)
    # A network of two updates does not solve the puzzle, which has its own exit code.
    is_unsolved = "--puzzle=" in script and "not solved after" in done.stdout
    assert done.returncode == (1 if is_unsolved else 0), f"{script}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def python_code(page):
    """The Python blocks of a page, which build on each other; tests/test_contributing.py runs those of its page."""
    return "\n".join(blocks(page, "python") if page.parent != ROOT else ())


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if python_code(page) or not all(map(stands_alone, lines(page)))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_and_then_the_python_code_of_a_page_run(page, user):
    """With flags behind the commands that shorten them."""
    variables = ""
    for line in lines(page):
        if re.match(r"\w+=\S*( \w+=\S*)*$", line):
            variables = line + "\n"
        elif not stands_alone(line):
            for workdir in needed_runs(line):
                if not (user / workdir).exists():
                    succeeds(training(workdir), user)
            succeeds(variables + shortened(line), user)
    (user / "page.py").write_text(python_code(page))
    succeeds("python page.py", user)


def test_the_config_file_in_the_howto_is_whole():
    text = (ROOT / "configs" / "sweeps" / "learning_rates.py").read_text()
    assert text in blocks(HOWTO, "python")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "line"), [pair for pair in EVERY_COMMAND if stands_alone(pair[1])], ids=lambda value: f"{value}"[-60:]
)
def test_commands_that_need_more_than_the_package(page, line, user):
    if obstacle(line):
        pytest.skip(obstacle(line))
    succeeds(shortened(line), user)


# --- what the pages name exists -----------------------------------------------------------------------


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


def test_the_readme_lists_every_command():
    section = (ROOT / "README.md").read_text().split("## Commands")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", section))
    assert {name.removeprefix("bench ") for group in COMMANDS.values() for name in group} <= listed


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
