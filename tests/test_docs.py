"""The code in the docs runs as it stands, one block after the other; the tables of shardings are the rules'."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from psann_jax.models import network as registry
from psann_jax.nn.partition import RULES, mesh_axes
from tests.support.tiny import write_text
from tests.support.variants import VARIANTS, variant

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
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


def table(name, header):
    """The rows of the table in a document that begins with a header."""
    _, _, rest = (DOCS / name).read_text().partition(f"\n{header}\n")
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def split_over(axes):
    return " x ".join(mesh_axes(axes)) or "-"


def test_the_table_of_logical_axes_is_that_of_the_rules():
    rows = {axis: mesh for axis, mesh, _ in table("training.md", "| logical axis | split over | of |")}
    assert rows == {field.name: split_over(getattr(RULES, field.name)) for field in dataclasses.fields(RULES)}


def test_the_table_of_parameters_is_that_of_the_networks():
    """All parameters of all networks, those with the same axes in one row."""
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
