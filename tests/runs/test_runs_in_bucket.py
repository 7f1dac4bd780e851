"""Trained runs in a bucket: loading, converting, and the files that commands write beside them."""

import json

import jax
import numpy as np
import pytest

from psann_jax.cli.commands import dispatch
from psann_jax.convert.read import read_weights
from psann_jax.convert.safetensors_file import write_safetensors
from psann_jax.convert.start import open_start
from psann_jax.nn.mesh import make_mesh
from psann_jax.runs.restore import load_run, load_text_run
from psann_jax.runs.samples import SAMPLES
from psann_jax.train.mirror import leased_workdir
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import given_location
from tests.support.bucket import bucket_at, s3_bucket
from tests.support.damage import flip_bit
from tests.support.saved import TOKENIZER, save_run
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The URL of a run with three checkpoints, the first of them the best, and the parameters of each."""
    tmp_path = tmp_path_factory.mktemp("saved")
    config = tiny_config(tmp_path, checkpoint__keep=3)
    with s3_bucket() as server:
        url = f"{server}/runs/small"
        with leased_workdir(given_location(url, "--workdir"), tmp_path) as workdir:
            params = save_run(workdir, config, {1: 2.0, 2: 3.0, 3: 4.0})
            (workdir / "config.json").write_text("{}")
            (workdir / "metrics.jsonl").write_text('{"kind": "eval", "step": 3, "loss": 4.5}\n')
        yield url, params


@pytest.mark.parametrize(("step", "expected"), [(None, 3), ("last", 3), ("best", 1), (2, 2)])
def test_any_checkpoint_can_be_loaded(saved, step, expected):
    url, params = saved
    run = load_text_run(url, step)
    assert run.step == expected
    assert run.tokenizer.fingerprint == TOKENIZER.fingerprint
    jax.tree.map(np.testing.assert_array_equal, run.params, params[expected])


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("runs/small", 7, r"no such checkpoint; there are \[1, 2, 3\]"),
        ("runs/small/checkpoints", None, "has no checkpoints; give the workdir of a run"),
        ("runs/none", None, "has no checkpoints; give the workdir of a run"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(saved, name, step, message):
    url = saved[0].replace("runs/small", name)
    with pytest.raises(UserError, match=message) as refused:
        load_run(url, step)
    assert "\n" not in str(refused.value)


def test_a_damaged_checkpoint_is_noticed(saved, tmp_path):
    url, _ = saved
    copy = url.replace("small", "damaged")
    bucket_at(url).download(bucket_at(url).files(), tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    flip_bit(next(tmp_path.glob("checkpoints/step_3/params/ocdbt.process_0/d/*")), -1)
    bucket_at(copy).upload(tmp_path, names)
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        load_run(copy)
    assert load_run(copy, 2).step == 2


def test_weights_are_read_from_a_run_or_a_file_in_a_bucket(saved, tmp_path, own_cache):
    url, params = saved
    assert read_weights(url).training.val_loss == 4.5
    weights = read_weights(url, checkpoint="best")
    assert weights.training.val_loss is None
    jax.tree.map(np.testing.assert_array_equal, weights.params, params[1])
    write_safetensors(tmp_path / "small.safetensors", weights)
    bucket_at(url).upload(tmp_path, ["small.safetensors"])
    again = read_weights(f"{url}/small.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.params, params[1])


def test_commands_write_beside_the_run_or_to_out(saved, tmp_path, capsys):
    url, _ = saved
    dispatch(["samples", f"--workdir={url}"])
    assert capsys.readouterr().out == f"{url}/{SAMPLES}\n"
    texts = json.loads(bucket_at(url).read(SAMPLES))
    dispatch(["samples", f"--workdir={url}", f"--out={tmp_path / 'here.json'}"])
    dispatch(["samples", f"--workdir={url}", f"--out={url}/other/there.json"])
    assert json.loads((tmp_path / "here.json").read_text()) == texts
    assert json.loads(bucket_at(url).read("other/there.json")) == texts


@pytest.mark.parametrize("name", ["", "/start.safetensors"])
def test_a_run_starts_from_a_run_or_a_file_in_a_bucket(saved, tmp_path, own_cache, name):
    url, params = saved
    write_safetensors(tmp_path / "start.safetensors", read_weights(url))
    bucket_at(url).upload(tmp_path, ["start.safetensors"])
    config = tiny_config(tmp_path, train__init_from=url + name)
    opened = open_start(config)
    found = opened.weights(opened.network, make_mesh(config.mesh), config.seed)
    jax.tree.map(np.testing.assert_array_equal, found.params, params[3])
    assert found.report["from"] == url + name
    with pytest.raises(UserError, match=r"^train.init_from: .*none"):
        open_start(tiny_config(tmp_path, train__init_from=url.replace("small", "none") + name))
