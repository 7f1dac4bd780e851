"""Progress goes to stdout in a notebook and to stderr elsewhere."""

import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from psann_jax.train.progress import Progress
from psann_jax.utils.extras import is_installed
from psann_jax.utils.progress_stream import progress_stream, updates_in_place


@pytest.mark.parametrize("config", [None, {}, {"IPKernelApp": {}}], ids=["no shell", "terminal", "notebook"])
def test_a_notebook_has_a_bar_on_stdout(config, monkeypatch, capsys):
    shell = None if config is None else SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    is_notebook = bool(config)
    assert progress_stream() is (sys.stdout if is_notebook else sys.stderr)
    assert updates_in_place(sys.stdout) == is_notebook
    assert not updates_in_place(sys.stderr)
    assert not updates_in_place(None)
    with Progress(3, log_every=1) as progress:
        for step in (1, 2, 3):
            progress.update(step, {"loss": 1.0})
    out, err = capsys.readouterr()
    assert ("3/3 [" in out, "step 3/3" in err) == (is_notebook, not is_notebook)
    assert out if is_notebook else not out


STREAMS = ("stdout", "stderr")
CELLS = """
from psann_jax.train.progress import Progress
with Progress(3) as progress:
    progress.header({"model": "tiny"})
    for step in (1, 2, 3):
        progress.update(step, {"loss": 1.0})
    progress.evaluation(3, {"loss": 0.5})
"""


@pytest.mark.parametrize("widgets", [True, False])
def test_a_real_notebook_shows_the_widget_if_it_can(widgets):
    if widgets and not is_installed("ipywidgets"):
        pytest.skip("needs ipywidgets")
    hide = "" if widgets else "import sys\nsys.modules['ipywidgets'] = None\n"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(hide + CELLS)])
    NotebookClient(notebook, timeout=120).execute()
    outputs = notebook.cells[0].outputs
    streams = {
        name: "".join(o.text for o in outputs if o.output_type == "stream" and o.name == name) for name in STREAMS
    }
    assert streams["stderr"] == ""
    assert "model  tiny\n" in streams["stdout"]
    assert "eval at step 3  loss 0.5\n" in streams["stdout"]
    assert ("3/3 [" in streams["stdout"]) == (not widgets)
    views = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert len(views) == widgets
    if widgets:
        bars = [w["state"] for w in states(notebook) if w["model_name"] == "FloatProgressModel"]
        assert [(bar["value"], bar["max"], bar["bar_style"]) for bar in bars] == [(3.0, 3.0, "success")]
        assert any("3/3\u2007[" in str(w["state"].get("value")) for w in states(notebook))


def states(notebook):
    return notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
