"""A server with two small models, and one with a model that was trained on dialogues."""

import json

import pytest

from psann_jax.config.io import default_config, parse
from psann_jax.runs.training import train_run
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
    gravity = default_config("ngt")
    gravity.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32, n_positions=LENGTH, d_coord=12, d_head_coord=16)
    gravity.data.update(sources=config.data.sources, max_length=LENGTH)
    gravity.data.tokenizer.kind = "bytes"
    save_run(folder / "gravity", parse(gravity), {9: 1.0})
    return {name: folder / name for name in ("wave", "gravity")}


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


ANSWER = "yes sir"  # of the model that was trained on dialogues, to everything


@pytest.fixture(scope="session")
def talk(tmp_path_factory):
    """The workdir of a run on dialogues."""
    folder = tmp_path_factory.mktemp("talk")
    turns = [{"role": "user", "content": "sun"}, {"role": "assistant", "content": ANSWER}]
    dialogues = [{"messages": turns * n} for n in (1, 2)] * 40
    (folder / "chat.jsonl").write_text("".join(json.dumps(dialogue) + "\n" for dialogue in dialogues))
    sources = {"data__sources": (str(folder / "chat.jsonl"),), "data__valid_sources": (str(folder / "chat.jsonl"),)}
    size = {"model__d_model": 32, "model__dropout": 0.0, "data__max_length": 96, "data__valid_fraction": 0.01}
    length = {"train__steps": 100, "train__batch_tokens": 768, "train__lr": 2e-2, "checkpoint__every": 100}
    config = tiny_config(folder, data__messages_field="messages", **sources, **size, **length)
    train_run(config, folder / "talk")
    return folder / "talk"


@pytest.fixture(scope="session")
def chat_server(talk, workdirs):
    """A server of this run, and of one without a template."""
    pytest.importorskip("starlette", reason="needs the extra serve")
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from psann_jax.runs.restore import load_text_run
    from psann_jax.serve.served import Limits, Served

    runs = {"talk": talk, "wave": workdirs["wave"]}
    with serving({name: Served(name, load_text_run(path), Limits(n_slots=4)) for name, path in runs.items()}) as made:
        yield made
