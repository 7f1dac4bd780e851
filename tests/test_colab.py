"""The notebooks run from top to bottom, print the expected results, and are stored without outputs."""

import ast
import html
import json
import math
import re
from base64 import b64decode
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from tests.support.browser import HAS_BROWSER, read_page

NOTEBOOKS = Path(__file__).parent.parent / "colab"
# Smaller values for parameters of the notebooks.
QUICK = {"N_DOCUMENTS": 6, "D_MODEL": 32, "MAX_STEPS": 12, "MAX_NEW_TOKENS": 12, "N_SEEDS": 2}


def with_quick_parameters(source):
    """Returns the code of a cell with the parameters in QUICK replaced."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in QUICK:
            node.value = ast.Constant(QUICK[node.targets[0].id])
    return ast.unparse(tree)


def run(name, facts):
    """Executes a whole notebook in the working directory.

    Args:
      name: the file name of the notebook.
      facts: a Python expression that is evaluated after the last cell; its value must be serialisable as JSON.

    Returns:
      The value of the expression, the text printed, and the figures (PNG); of `run_with_pages` the pages, too.
    """
    *found, _ = run_with_pages(name, facts)
    return found


def run_with_pages(name, facts):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", ()):
            cell.source = with_quick_parameters(cell.source)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({facts}))"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(Path.cwd())}}).execute()
    *outputs, last = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {"state": {}})
    values = (str(widget["state"].get("value", "")) for widget in widgets["state"].values())  # of the bar, if it is one
    text += "\n".join(values).replace("\u2007", " ")
    red = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not any("%" in line or " loss " in line for line in red), "stdout is not shown as an error"
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    figures = [b64decode(data["image/png"]) for data in shown if "image/png" in data]
    pages = [data[kind] for data in shown for kind in ("text/html", "text/markdown") if kind in data]
    return json.loads(last.text), text, figures, pages


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["quickstart.ipynb", "generate.ipynb", "compare.ipynb"])
@pytest.mark.parametrize("found", [None, ModuleSpec("psann_jax", None, is_package=True), find_spec("psann_jax")])
@pytest.mark.parametrize("gpu", [None, "/usr/bin/nvidia-smi"])
def test_the_package_is_installed_with_a_jax_for_the_machine(name, found, gpu, monkeypatch):
    """Runs the first code cell with a fake pip; a folder psann_jax, as of a clone, has a spec without a file."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "install" in cell.metadata.get("tags", ()))
    commands, shell = [], InteractiveShell(ipython_dir=str(Path.cwd()))
    shell.register_magic_function(commands.append, "line", "pip")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("shutil.which", lambda program: gpu)
    shell.run_cell(cell.source).raise_error()
    more = " plotly" if name == "compare.ipynb" else ""
    jax = "jax[cuda12]" if gpu else "jax"
    missing = found is None or found.origin is None
    assert commands == [f'install -q ./psann_jax.zip{more} "{jax}"'] * missing


@pytest.mark.slow
def test_the_notebooks_run_one_after_the_other():
    history, out, figures = run("quickstart.ipynb", "model.history")
    evaluations = [row["loss"] for row in history if row["kind"] == "eval"]
    assert evaluations[-1] < evaluations[0] - 0.5
    assert f"validation loss {evaluations[-1]:.2f}, perplexity {math.exp(evaluations[-1]):.1f}" in out
    assert out.count("'The ") == 1
    steps = re.findall(r"(\d+)/12 \[", out)
    assert steps[-1] == "12"
    assert not re.search(r"^step \d+", out, re.MULTILINE), "a bar, not a stack of lines"
    assert len(figures) == 1

    facts = "[completion.tokens, completion.logprobs, grid, [text.get_text() for text in axes.texts]]"
    (tokens, logprobs, grid, labels), out, figures = run("generate.ipynb", facts)
    assert "waveresnet, trained on windows of " in out, "it uses the file of the first notebook"
    assert f"({len(tokens)} tokens, ended by " in out
    assert len(figures) == 1
    assert len(labels) == len(tokens)
    assert [p for row in grid for p in row] == pytest.approx([math.exp(logprob) for logprob in logprobs])


@pytest.mark.slow
def test_generation_trains_a_model_if_there_is_none(tmp_path):
    base, out, _ = run("generate.ipynb", "model.base")
    assert (tmp_path / "model.safetensors").exists()
    assert base == "waveresnet"
    assert "tokens, ended by" in out


# Looks into the report that the notebook shows.
READER = """
  await settled();
  const report = document.querySelector("iframe").contentDocument;
  seen.figures = report.querySelectorAll(".plot .main-svg").length;
  seen.contenders = [...report.querySelectorAll("#texts th")].map((cell) => cell.textContent);
"""


@pytest.mark.slow
def test_two_bases_are_compared(tmp_path):
    facts = "{'names': list(CONTENDERS), 'seeds': N_SEEDS, 'steps': MAX_STEPS, 'is_cpu': IS_CPU}"
    found, out, figures, pages = run_with_pages("compare.ipynb", facts)
    assert found == {"names": ["transformer", "waveresnet"], "seeds": 2, "steps": QUICK["MAX_STEPS"], "is_cpu": True}
    workdir = tmp_path / "runs" / "compare"
    results = json.loads((workdir / "summary.json").read_text())["results"]
    assert [result["status"] for result in results] == ["ok"] * 4
    assert len(figures) == 1
    report, result = (page for page in pages if "<iframe" in page or "Differences" in page)
    assert html.unescape(report).count((workdir / "report.html").read_text()) == 1
    if HAS_BROWSER:
        seen = read_page(f"<html><head></head><body>{report}</body></html>", READER, tmp_path)
        assert seen["errors"] == []
        assert seen["figures"] >= 3
        assert seen["contenders"] == found["names"], "with their sample texts"
    assert "| waveresnet | transformer | 2 |" in result
    assert "| no verdict: fewer than 4 seeds |" in result
    for name in found["names"]:
        samples = json.loads((workdir / "runs" / f"{name}_seed1" / "samples.json").read_text())["samples"]
        texts = [repr(one["prompt"] + one["text"]) for one in samples if one["temperature"]]
        assert all(text in out for text in texts)


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebooks_have_no_outputs_and_valid_cells(name):
    notebook = json.loads((NOTEBOOKS / name).read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert "install" in notebook["cells"][1]["metadata"]["tags"]
