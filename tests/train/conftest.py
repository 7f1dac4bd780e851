"""A tiny run and what it needs, for tests of the training loop."""

import pytest

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from tests.support.loop_runs import rows_of, state_of
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with the text, a config, its task, and the compiled steps that all runs of the module share."""
    tmp_path = tmp_path_factory.mktemp("loop")
    config = tiny_config(tmp_path, eval__every=4)
    task = LanguageModel.load(config, progress=False)
    compiled = loop.compile_steps(task, config, loop.make_mesh(config.mesh))
    return tmp_path, config, task, compiled


@pytest.fixture
def run(base, monkeypatch):
    """Trains in a workdir with the module's compiled steps."""
    _tmp_path, config, task, compiled = base
    monkeypatch.setattr(loop, "compile_steps", lambda *_: compiled)
    return lambda workdir, config=config, task=task: loop.train(config, lambda: task, workdir)


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    """Summary, rows and final state of an uninterrupted run."""
    _, config, task, _ = base
    workdir = tmp_path_factory.mktemp("whole") / "run"
    summary = loop.train(config, lambda: task, workdir)
    return summary, rows_of(workdir), state_of(workdir, base)
