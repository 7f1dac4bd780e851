"""The notebooks run from top to bottom, say what they should, and are kept without outputs."""

import ast
import json
import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "colab"
# What a test changes in the cells that have @param comments.
QUICK = {"N_DOCUMENTS": 6, "D_MODEL": 32, "MAX_STEPS": 12, "MAX_NEW_TOKENS": 12}


def cells(name, kind="code"):
    """The cells of a kind as they are, without the one that installs the package."""
    notebook = json.loads((NOTEBOOKS / name).read_text())
    return [c for c in notebook["cells"] if c["cell_type"] == kind and "install" not in c["metadata"].get("tags", ())]


def quicker(source):
    """The code with its parameters replaced by the quick ones."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in QUICK:
            node.value = ast.Constant(QUICK[node.targets[0].id])
    return ast.fix_missing_locations(tree)


def run(name):
    """Executes a notebook's code in the working directory; its names, and the text of every figure that it shows."""
    names, shown = {"__name__": "__main__"}, []
    matplotlib.use("agg")
    show, plt.show = plt.show, lambda: (shown.append(plt.gcf()), plt.close("all"))
    try:
        for cell in cells(name):
            source = "".join(cell["source"])
            exec(compile(quicker(source), f"{name}: {cell['id']}", "exec"), names)
    finally:
        plt.show = show
    return names, shown


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_notebooks_run_one_after_the_other(capsys):
    names, shown = run("quickstart.ipynb")
    out = capsys.readouterr().out
    evaluations = [row["loss"] for row in names["model"].history if row["kind"] == "eval"]
    assert evaluations[-1] < evaluations[0] - 0.5
    assert f"validation loss {evaluations[-1]:.2f}, perplexity {math.exp(evaluations[-1]):.1f}" in out
    assert out.count("'The ") == 1
    (axes,) = shown[0].axes
    assert [len(line.get_xdata()) for line in axes.lines] == [
        sum(row["kind"] == kind for row in names["model"].history) for kind in ("train", "eval")
    ]

    names, shown = run("generate.ipynb")
    out = capsys.readouterr().out
    assert "waveresnet, trained on windows of " in out, "the file of the first notebook"
    assert names["model"].config.model.wave.interleave
    completion = names["completion"]
    assert f"({len(completion.tokens)} tokens, ended by {completion.finish})" in out
    picture = shown[0].axes[0]
    assert len(picture.texts) == len(completion.tokens)
    shades = [float(shade) for shade in picture.images[0].get_array().ravel()]
    assert shades[: len(completion.tokens)] == pytest.approx([math.exp(logprob) for logprob in completion.logprobs])


def test_generation_trains_a_model_where_there_is_none(tmp_path):
    source = "".join(next(cell for cell in cells("generate.ipynb") if cell["id"] == "model")["source"])
    names = {}
    exec(compile(quicker(source), "model", "exec"), names)
    assert (tmp_path / "model.safetensors").exists()
    assert names["model"].base == "waveresnet"


@pytest.mark.parametrize("name", ["quickstart.ipynb", "generate.ipynb"])
def test_notebooks_are_clean_and_whole(name):
    notebook = json.loads((NOTEBOOKS / name).read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert "install" in notebook["cells"][1]["metadata"]["tags"]
