"""The example family of CONTRIBUTING.md is complete: it trains, resumes and decodes with a cache."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from psann_jax.config import families
from psann_jax.config.io import default_config, parse
from psann_jax.models.network import make_network
from psann_jax.runs.restore import load_text_run
from psann_jax.runs.training import train_run
from tests.support.tiny import write_text


@pytest.fixture
def config(monkeypatch, tmp_path):
    """A small experiment of the family, whose code is all that the package knows of it."""
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    names = {"__name__": "parallel_family"}
    exec(re.search(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)[1], names)
    monkeypatch.setitem(families._FAMILIES, "parallel", names["FAMILY"])
    config = default_config("parallel")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=32)
    source = str(write_text(tmp_path / "text.txt"))
    config.data.update(sources=(source,), valid_fraction=0.1, max_length=32, cache_dir=str(tmp_path / "cache"))
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=2, batch_tokens=256, lr=1e-2, warmup_steps=1, precision="fp32")
    return config


def test_it_trains_and_resumes(config, tmp_path):
    train_run(parse(config), tmp_path / "run")
    config.train.steps = 4
    summary = train_run(parse(config), tmp_path / "run")
    assert summary["steps"] == 4
    assert np.isfinite(summary["val_loss"])
    assert load_text_run(tmp_path / "run").step == 4


def test_it_decodes_with_a_cache(config):
    network = make_network(parse(config), vocab_size=50)
    model = network.merge(network.init(jax.random.key(0)))
    tokens = np.arange(16)[None]
    whole, _, _ = model.hidden(tokens)
    first, cache, _ = model.hidden(tokens[:, :7], cache=model.init_cache(1, 16))
    rest, _, _ = model.hidden(tokens[:, 7:], cache=cache)
    np.testing.assert_allclose(np.concatenate((first, rest), axis=1), whole, atol=1e-5)
