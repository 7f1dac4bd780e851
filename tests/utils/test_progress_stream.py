"""Progress goes to stdout in a notebook and to stderr elsewhere."""

import sys
from types import SimpleNamespace

import pytest

from psann_jax.train.progress import Progress
from psann_jax.utils.progress_stream import progress_stream, updates_in_place


@pytest.mark.parametrize("config", [None, {}, {"IPKernelApp": {}}], ids=["no shell", "terminal", "notebook"])
def test_a_notebook_has_a_bar_on_stdout(config, monkeypatch, capsys):
    shell = None if config is None else SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
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
