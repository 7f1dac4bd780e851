"""A server with two small models."""

import pytest

from tests.support.saved import save_run
from tests.support.serving import serving
from tests.support.tiny import tiny_config

LENGTH = 64


@pytest.fixture(scope="session")
def workdirs(tmp_path_factory):
    """The workdirs of a waveresnet and a gravity model with random parameters, by name."""
    folder = tmp_path_factory.mktemp("served")
    config = tiny_config(folder, model__n_layers=1, data__max_length=LENGTH)
    save_run(folder / "wave", config, {3: 1.0, 6: 2.0})
    save_run(folder / "second", config, {9: 1.0})
    return {name: folder / name for name in ("wave", "second")}


@pytest.fixture(scope="session")
def models(workdirs):
    pytest.importorskip("starlette", reason="needs the extra serve")
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from psann_jax.runs.restore import load_text_run
    from psann_jax.serve.served import Limits, Served

    return {name: Served(name, load_text_run(path), Limits(n_slots=4)) for name, path in workdirs.items()}


@pytest.fixture(scope="session")
def server(models):
    with serving(models) as running:
        yield running
