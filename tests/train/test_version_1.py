"""Checkpoints, config.json and metrics.jsonl of psann_jax 0.1 stay readable."""

import dataclasses
import json

import pytest

from psann_jax.config.io import default_config, parse, to_dict, upgrade_saved
from psann_jax.models.network import make_network
from psann_jax.nn.mesh import ONE_DEVICE, make_mesh
from psann_jax.train import checkpoints as writer
from psann_jax.train.checkpoint_format import split_items, to_stored
from psann_jax.train.metrics import MetricsWriter, read_metrics
from psann_jax.train.step import init_state, state_spec
from psann_jax.train.workdir import lock, read_config, read_summary, write_config
from psann_jax.utils.errors import UserError
from tests.support.checkpointing import METADATA, abstract, assert_bit_equal, make_state, open_checkpoints
from tests.support.damage import flip_bit
from tests.support.tiny import tiny_config


def items_of_version_1(state):
    items = split_items(state)
    return {"averaged" if name == "ema_params" else name: value for name, value in items.items()}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A directory with one checkpoint as version 0.1 wrote it."""
    with monkeypatch.context() as patch, open_checkpoints(tmp_path / "ck") as checkpoints:
        patch.setattr(writer, "FORMAT_VERSION", 1)
        patch.setattr(writer, "split_items", items_of_version_1)
        checkpoints.save(7, make_state(7), metadata=METADATA, final=True)
    assert (tmp_path / "ck" / "step_7" / "averaged").is_dir()
    return tmp_path / "ck"


def test_the_whole_state_is_restored(saved):
    checkpoints = open_checkpoints(saved)
    assert checkpoints.metadata(7)["format_version"] == 1
    assert checkpoints.newest_intact() == (7, [])
    assert_bit_equal(checkpoints.restore(7, abstract(make_state(7))), make_state(7))


def test_ema_parameters_are_restored_alone_and_verified(saved):
    ema_params = make_state(7)["ema_params"]
    restored = open_checkpoints(saved).restore(7, {"ema_params": abstract(ema_params)})
    assert_bit_equal(restored, {"ema_params": ema_params})
    flip_bit(next((saved / "step_7" / "averaged" / "d").iterdir()))
    with pytest.raises(UserError, match=r"damaged; .*\(averaged/d/.*: its checksum differs\)$"):
        open_checkpoints(saved).restore(7, {"ema_params": abstract(ema_params)})


def test_the_next_save_has_the_current_format(saved):
    with open_checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(8, make_state(8), metadata=METADATA, final=True)
        assert checkpoints.steps() == [7, 8]
        assert checkpoints.metadata(8)["format_version"] == 2
        assert_bit_equal(checkpoints.restore(8, abstract(make_state(8))), make_state(8))


def test_a_workdir_is_resumed_and_gets_the_current_names(tmp_path):
    workdir, config = tmp_path / "run", tiny_config(tmp_path)
    workdir.mkdir()
    saved = to_dict(config)
    saved["data"]["threads"] = saved["data"].pop("num_workers")
    for name in ("tied_embeddings", "logit_softcap", "bias"):  # settings of later versions
        del saved["model"][name]
    (workdir / "config.json").write_text(json.dumps(saved))
    (workdir / "summary.json").write_text(json.dumps({"steps": 8, "val_top1": 0.5, "val_averaged_loss": 2.0}))
    (workdir / "metrics.jsonl").write_text('{"step": 0, "kind": "eval", "loss": 3.0}\n')
    with lock(workdir, config):
        assert "num_workers" in read_config(workdir)["data"]
        write_config(workdir, config)
        assert read_config(workdir) == json.loads(json.dumps(to_dict(config)))
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, logit_softcap=9.0))
    (workdir / "config.json").write_text(json.dumps(saved))
    with (
        pytest.raises(UserError, match=r"another run: model\.logit_softcap is 0\.0 there and 9\.0 here"),
        lock(workdir, changed),
    ):
        pass
    assert read_summary(workdir) == {"steps": 8, "val_accuracy": 0.5, "val_ema_loss": 2.0}


def test_metrics_get_the_current_names(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "eval", "loss": 3.0, "top1": 0.1, "averaged_top1": 0.2}\n')
    expected = [{"step": 1, "kind": "eval", "loss": 3.0, "accuracy": 0.1, "ema_accuracy": 0.2}]
    assert read_metrics(path) == expected
    MetricsWriter(tmp_path, resume_step=1).close()
    assert json.loads(path.read_text()) == expected[0]


def test_a_sudoku_run_of_version_1_is_restored(tmp_path, monkeypatch):
    """Its blocks had no modules for attention and MLP; the moments of the optimizer are changed as well."""
    config = default_config("sudoku")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=24, mlp_activation="sine")
    config.train.ema_decay = 0.9
    config = parse(config)
    network = make_network(config)
    spec = state_spec(network, config.train, make_mesh(ONE_DEVICE, all_devices=False))
    state = init_state(network, config.train, spec, seed=1)

    def items(state):
        return {name: to_stored(tree, "sudoku", 1) for name, tree in items_of_version_1(state).items()}

    with monkeypatch.context() as patch, open_checkpoints(tmp_path / "ck") as checkpoints:
        patch.setattr(writer, "FORMAT_VERSION", 1)
        patch.setattr(writer, "split_items", items)
        checkpoints.save(7, state, metadata={"config": to_dict(config)}, final=True)
    stored = to_stored(state["params"], "sudoku", 1)["blocks"]
    assert set(stored) == {"norm1", "q", "k", "v", "o", "norm2", "fc1", "fc2", "act"}
    assert_bit_equal(open_checkpoints(tmp_path / "ck").restore(7, abstract(state)), state)


@pytest.mark.parametrize(
    ("source", "document"),
    [
        ("builtin:python", "auto"),
        ("hf:a/b", "auto"),
        ("a.jsonl.gz", "auto"),
        ("a.parquet", "auto"),
        ("a.txt", "line"),
        ("data/*", "line"),
    ],
)
def test_documents_stay_lines_where_there_are_lines(source, document):
    data = {"sources": [source], "valid_sources": [], "document": "line", "threads": 2}
    assert upgrade_saved({"data": data})["data"]["document"] == document
    data["num_workers"] = data.pop("threads")
    assert upgrade_saved({"data": data})["data"]["document"] == "line", "a setting of the user"
