"""Runs that start from the weights of others: what is taken, what is refused, and that they resume."""

import json
import shutil

import jax
import numpy as np
import pytest

from psann_jax.config import ConfigError
from psann_jax.config.io import default_config
from psann_jax.convert.hf.write import write_folder
from psann_jax.convert.read import read_weights
from psann_jax.convert.safetensors_file import write_safetensors
from psann_jax.convert.start import open_start
from psann_jax.convert.weights import Weights
from psann_jax.data.tokenizer import byte_tokenizer
from psann_jax.models.network import build, make_network
from psann_jax.nn.mesh import make_mesh
from psann_jax.runs.evaluate import evaluate, validation_text
from psann_jax.runs.restore import load_run, load_text_run
from psann_jax.runs.training import train_run
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.errors import UserError
from tests.support.tiny import parse_with, tiny_config, write_text

STEPS = {"train__steps": 4, "checkpoint__every": 2, "checkpoint__keep": 3, "eval__every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `source`, which has a trained tokenizer and EMA weights, and another text."""
    folder = tmp_path_factory.mktemp("start")
    write_text(folder / "other.txt", seed=1)
    train_run(source_config(folder), folder / "source")
    return folder


def source_config(folder, **changes):
    tokenizer = {"data__tokenizer__kind": "auto", "data__tokenizer__vocab_size": 300}
    return tiny_config(folder, **{**STEPS, **tokenizer, "train__ema_decay": 0.5, **changes})


def next_config(folder, **changes):
    """The config of a run on the other text that starts from the source."""
    given = {"data__sources": (str(folder / "other.txt"),), "train__init_from": str(folder / "source"), **changes}
    return source_config(folder, **given)


def started(config, vocab_size=None):
    """The parameters that a run of a config would start from, and the report."""
    opened = open_start(config)
    network = make_network(config, vocab_size or opened.tokenizer.vocab_size)
    return opened.weights(network, make_mesh(config.mesh), config.seed)


def assert_equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


@pytest.mark.parametrize(
    ("changes", "loaded"),
    [
        ({}, {"step": 4}),
        ({"train__init_checkpoint": "2"}, {"step": 2}),
        ({"train__init_checkpoint": "best", "train__init_ema": True}, {"step": "best", "ema_params": True}),
    ],
)
def test_the_named_weights_are_taken_as_they_are(folder, changes, loaded):
    expected = load_run(folder / "source", **loaded)
    start = started(next_config(folder, **changes))
    assert_equal(start.params, expected.params)
    assert (start.report["step"], start.report["new"]) == (expected.step, [])
    assert start.report["weights"] == ("ema_params" if "ema_params" in loaded else "params")
    assert start.fact.startswith(f"{folder / 'source'} at step {expected.step}")


def test_a_run_starts_from_them_with_their_tokenizer_and_resumes_without_them(folder, tmp_path):
    config = next_config(folder)
    source = load_text_run(folder / "source")
    moved = folder / "source"
    train_run(config, tmp_path / "whole", open_start=open_start)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    moved.rename(folder / "away")
    try:
        for name in ("checkpoints/step_4", "summary.json"):
            path = tmp_path / "stopped" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        train_run(config, tmp_path / "stopped", open_start=open_start)
    finally:
        (folder / "away").rename(moved)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped")]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]
    whole, stopped = (load_text_run(tmp_path / name) for name in ("whole", "stopped"))
    assert_equal(stopped.params, whole.params)
    assert whole.tokenizer.to_bytes() == source.tokenizer.to_bytes()
    report = json.loads((tmp_path / "whole" / "initial_weights.json").read_bytes())
    assert report["from"] == str(folder / "source")
    assert report["config"]["data"]["sources"] == [str(folder / "text.txt")]
    assert rows[0][0]["ema_loss"] == rows[0][0]["loss"]


def test_evaluation_of_such_a_run_finds_its_text(folder, tmp_path):
    train_run(next_config(folder), tmp_path / "run", open_start=open_start)
    run = load_text_run(tmp_path / "run")
    last = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "eval"][-1]
    assert evaluate(run, validation_text(run)).results["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_a_run_on_the_same_text_begins_where_the_source_ended(folder, tmp_path):
    config = source_config(folder, train__init_from=str(folder / "source"))
    train_run(config, tmp_path / "run", open_start=open_start)
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    last = [row for row in read_metrics(folder / "source" / "metrics.jsonl") if row["kind"] == "eval"][-1]
    assert (first["step"], first["loss"]) == (0, last["loss"])


def test_a_file_is_a_start_too(folder, tmp_path):
    weights = read_weights(folder / "source")
    write_safetensors(tmp_path / "weights.safetensors", weights)
    start = started(next_config(folder, train__init_from=str(tmp_path / "weights.safetensors")))
    assert_equal(start.params, weights.params)
    with pytest.raises(ConfigError, match=r"^train.init_checkpoint: has no effect, because .*weights.safetensors is"):
        open_start(
            next_config(folder, train__init_from=str(tmp_path / "weights.safetensors"), train__init_checkpoint="best")
        )


def test_weights_that_are_not_finite_are_refused(folder, tmp_path):
    """A short run would end before `train.max_bad_steps` notices them, with a loss of NaN and exit code 0."""
    weights = read_weights(folder / "source")
    kernel = weights.params["blocks"]["mlp"]["fc1"]["kernel"].copy()
    kernel[1, 2, 3] = np.nan
    weights.params["blocks"]["mlp"]["fc1"]["kernel"] = kernel
    write_safetensors(tmp_path / "weights.safetensors", weights)
    config = next_config(folder, train__init_from=str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match=r"^train.init_from: .*weights.safetensors: blocks.mlp.fc1.kernel has valu"):
        train_run(config, tmp_path / "run", open_start=open_start)
    named = {"data__tokenizer__vocab_size": 32000, "data__tokenizer__path": str(tmp_path / "tokenizer.json")}
    config = next_config(folder, train__init_from="", **named)
    weights.tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"^the weights to start from: blocks.mlp.fc1.kernel has values that are not"):
        train_run(config, tmp_path / "run", initial_params=weights.params)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_of_transformers_needs_its_prefix(folder, tmp_path):
    weights = read_weights(folder / "source")
    write_folder(tmp_path / "shared", weights, "source")
    with pytest.raises(UserError, match=r"^train.init_from: .*; for a folder of transformers, give hf:DIRECTORY$"):
        open_start(next_config(folder, train__init_from=str(tmp_path / "shared")))
    named = {"data__tokenizer__vocab_size": 32000, "train__init_from": f"hf:{tmp_path / 'shared'}"}
    assert_equal(started(next_config(folder, **named)).params, weights.params)
    with pytest.raises(ConfigError, match=r"^data.tokenizer.kind: is 'bpe', but .*shared is used; set it to 'auto'"):
        open_start(next_config(folder, **named, data__tokenizer__kind="bpe"))


def test_a_file_without_a_tokenizer_needs_one_of_its_size(folder, tmp_path):
    weights = read_weights(folder / "source")
    path, tokenizer = tmp_path / "weights.safetensors", tmp_path / "tokenizer.json"
    write_safetensors(path, Weights(weights.config, weights.params, None))
    with pytest.raises(ConfigError, match=r"^data.tokenizer.path: is \"\", but .* has no tokenizer; name the one"):
        open_start(next_config(folder, train__init_from=str(path)))
    weights.tokenizer.save(tokenizer)
    named = {"train__init_from": str(path), "data__tokenizer__vocab_size": 32000}
    config = next_config(folder, **named, data__tokenizer__path=str(tokenizer))
    assert_equal(started(config, weights.tokenizer.vocab_size).params, weights.params)
    byte_tokenizer().save(tokenizer)
    with pytest.raises(ConfigError, match=r"^data.tokenizer.path: has 260 tokens, but the weights of .* without a tok"):
        started(config, 260)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__d_model": 32}, r"^model.d_model: is 32, but 16 in .*source; set it to 16, or name it in train.init"),
        ({"model__positional_encoding": "alibi"}, r"^model.positional_encoding: is 'alibi', but 'rope' in .*source"),
        ({"data__tokenizer__vocab_size": 400}, r"^data.tokenizer.vocab_size: is 400, but the tokenizer of .*source is"),
        ({"data__tokenizer__pad_token": "<p>"}, r"^data.tokenizer.pad_token: is '<p>', but the tokenizer of .*source"),
        ({"train__init_from": "/nowhere"}, r"^train.init_from: /nowhere: must be a .safetensors file"),
        ({"train__init_checkpoint": "3"}, r"^train.init_from: .*step_3: no such checkpoint; there are \[2, 4\]"),
        ({"train__init_changes": ("model.d_modle",)}, r"^train.init_changes: 'model.d_modle' is no model setting, did"),
        ({"train__init_changes": ("model.norm",)}, r"^train.init_changes: names model.norm, which is the same in"),
    ],
)
def test_what_differs_is_refused_by_name(folder, changes, message):
    with pytest.raises(UserError, match=message):
        open_start(next_config(folder, **changes))


def test_a_named_change_still_needs_parameters_of_the_same_shape(folder):
    changes = {"model__d_mlp": 48, "train__init_changes": ("model.d_mlp",)}
    with pytest.raises(UserError, match=r"^train.init_from: blocks.mlp.act.amplitude is \[2, 32\] in .*, must be"):
        started(next_config(folder, **changes))


def test_named_changes_may_add_and_omit_parameters(folder):
    changes = {"model__residual_alpha": False, "model__qk_norm": True}
    names = tuple(sorted(name.replace("__", ".") for name in changes))
    config = next_config(folder, **changes, train__init_changes=names)
    start = started(config)
    expected = load_run(folder / "source").params
    assert start.report["new"] == ["blocks.attn.k_norm.scale", "blocks.attn.q_norm.scale"]
    assert start.report["unused"] == ["blocks.alpha"]
    assert start.report["changed_settings"] == {"model.qk_norm": [False, True], "model.residual_alpha": [True, False]}
    assert "new blocks.attn.k_norm.scale, blocks.attn.q_norm.scale; not used blocks.alpha" in start.fact
    np.testing.assert_array_equal(start.params["blocks"]["attn"]["q_norm"]["scale"], 1)
    np.testing.assert_array_equal(start.params["embed"], expected["embed"])


@pytest.mark.parametrize("setting", ["dropout", "attention", "init"])
def test_settings_that_change_no_parameter_may_differ(folder, setting):
    other = {"dropout": 0.0, "attention": "plain", "init": "zero_output"}[setting]
    open_start(next_config(folder, **{f"model__{setting}": other}))


def test_values_of_the_base_equal_the_same_values_written_out(folder):
    open_start(next_config(folder, model__mlp_activation="sine", model__norm="rmsnorm"))


@pytest.mark.parametrize(("base", "name"), [("vanilla", "positions"), ("ngt", "coords")])
@pytest.mark.parametrize("length", [16, 32, 48])
def test_a_table_of_positions_is_extended_or_cut(tmp_path, base, name, length):
    config = default_config(base)
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=("builtin:python",), max_length=32)
    config.train.batch_tokens = 32
    saved = parse_with(config, {"data__tokenizer__kind": "bytes"})
    tokenizer = byte_tokenizer()
    network = make_network(saved, tokenizer.vocab_size)
    params = jax.tree.map(lambda x: np.asarray(x) + 1, network.init(jax.random.key(5)))
    sized = type(saved)(model=network.config, data=saved.data, train=saved.train)
    write_safetensors(tmp_path / "weights.safetensors", Weights(sized, params, tokenizer))
    changes = {"data__max_length": length, "train__batch_tokens": length, "data__tokenizer__kind": "bytes"}
    wanted = parse_with(config, {**changes, "train__init_from": str(tmp_path / "weights.safetensors")})
    start = started(wanted)
    table, kept = start.params[name], min(length, 32)
    initial = make_network(wanted, tokenizer.vocab_size).init(jax.random.key(wanted.seed))[name]
    np.testing.assert_array_equal(table[:kept], params[name][:kept])
    np.testing.assert_allclose(table[kept:], initial[kept:], rtol=1e-6)
    assert table.shape[0] == length
    assert start.report.get("positions") == (None if length == 32 else {name: {"loaded": kept, "of": length}})


def test_a_new_vocabulary_is_matched_by_text(folder, tmp_path):
    """With the byte tokenizer, a run continues with rows of the tokens that are one byte."""
    byte_tokenizer().save(tmp_path / "bytes.json")
    config = next_config(folder, data__tokenizer__path=str(tmp_path / "bytes.json"), data__tokenizer__vocab_size=32000)
    source, new = load_text_run(folder / "source"), byte_tokenizer()
    start = started(config, new.vocab_size)
    old_id, new_id = source.tokenizer.encode("s")[0], new.encode("s")[0]
    np.testing.assert_array_equal(start.params["embed"][new_id], source.params["embed"][old_id])
    np.testing.assert_array_equal(
        start.params["head"][:, new.eos_id], source.params["head"][:, source.tokenizer.eos_id]
    )
    assert start.report["vocabulary"]["parameters"] == ["embed", "head"]
    train_run(config, tmp_path / "run", open_start=open_start)
    assert load_text_run(tmp_path / "run").tokenizer.kind == "bytes"


def test_ema_weights_that_do_not_exist_are_refused(folder, tmp_path):
    train_run(tiny_config(folder, train__steps=1), tmp_path / "plain")
    config = tiny_config(folder, train__init_from=str(tmp_path / "plain"), train__init_ema=True)
    with pytest.raises(ConfigError, match=r"^train.init_ema: is True, but .*plain has no EMA weights"):
        open_start(config)


@pytest.mark.slow
def test_puzzles_start_from_puzzles(tmp_path):
    """A run without a tokenizer, and never from one with text."""
    config = default_config("sudoku")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32, iterations=2)
    config.data.update(counts=(40, 0, 0, 0, 0), extra_clues=45, curriculum="mixed", cache_dir=str(tmp_path / "cache"))
    config.train.update(steps=2, warmup_steps=1, batch_tokens=648, precision="fp32")
    config.eval.max_tokens = 648
    train_run(parse_with(config, {}), tmp_path / "source")
    wanted = parse_with(config, {"train__init_from": str(tmp_path / "source")})
    train_run(wanted, tmp_path / "run", open_start=open_start)
    first, *_, last = (
        next(row for row in rows if row["kind"] == "eval")
        for rows in (
            read_metrics(tmp_path / "run" / "metrics.jsonl"),
            read_metrics(tmp_path / "source" / "metrics.jsonl")[::-1],
        )
    )
    assert first["loss"] == last["loss"]
    with pytest.raises(ConfigError, match=r"^model.base: is 'waveresnet', but 'sudoku' in"):
        open_start(tiny_config(tmp_path, train__init_from=str(tmp_path / "source")))


def test_a_caller_with_weights_of_its_own_refuses_the_setting(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"^train.init_from: has no effect here"):
        train_run(next_config(folder), tmp_path / "run", initial_params=build, open_start=open_start)
    assert not (tmp_path / "run").exists()
