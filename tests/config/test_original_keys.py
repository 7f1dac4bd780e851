"""YAML config files with the keys of the originals."""

import re
from pathlib import Path

import pytest
import yaml

from psann_jax.config.families import families
from psann_jax.config.files import load_experiment
from psann_jax.config.io import default_config, flatten, parse
from psann_jax.config.original_keys import ORIGINALS, Unused
from psann_jax.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


PSANNLM_SMALL = """\
model:
  base: waveresnet
  d_model: 512
  n_layers: 8
  n_heads: 8
  d_mlp: 2048
  vocab_size: 32000
  rope: true
  sine_params:
    amp_init: 1.0
    freq_init: 1.0
    damp_init: 0.01
    trainable: true

data:
  sources:
    - path: data/sample_texts.txt
  tokenizer: auto
  max_length: 1024
  pack_sequences: true
  val_split: 0.01
  seed: 1337

train:
  epochs: 1
  batch_tokens: 131072
  lr: 0.0002
  warmup_steps: 2000
  weight_decay: 0.01
  amp: bf16
  grad_clip: 1.0
  grad_accum_steps: 1
  ddp: auto
  checkpoint_dir: runs/lm/wrn_small
  log_interval_steps: 50
  save_interval_steps: 500
"""


def test_the_example_of_psannlm(load, capsys):
    config = load(PSANNLM_SMALL)
    expected = default_config("waveresnet")
    expected.model.sine.update(freq_init=1.0, freq_init_std=0.0, damp_init=0.01)
    expected.data.sources = ("data/sample_texts.txt",)
    expected.train.update(batch_tokens=131_072, warmup_steps=2000, end_lr_ratio=0.0, log_every=50)
    assert config == parse(expected)
    notes = capsys.readouterr().err.splitlines()
    assert all(re.match(r"note: \S+c\.yaml(:\d+)?: ", note) for note in notes)
    named = [re.sub(r"^note: \S+: ", "", note).split(" ")[0] for note in notes]
    assert named == ["read", "train.ddp", "train.checkpoint_dir", "epochs=1"]


def test_the_recommended_settings_of_the_base_sweeps(load):
    """Also written without the section `model`, and with the defaults of psannlm for what is left out."""
    text = """
base: waveresnet
mlp_activation: sine
sine_params:
  amp_init: 1.0
  freq_init: 2.25
  freq_init_std: 0.25
  damp_init: 0.001
  trainable: true
"""
    assert load(text).model == parse(default_config("waveresnet")).model.__class__(mlp_activation="sine")
    left_out = load("base: respsann\nrope: false\nsine_params: {amp_init: 2}\n").model
    assert left_out.positional_encoding == "sinusoidal"
    sine = left_out.sine
    assert (sine.amp_init, sine.freq_init, sine.freq_init_std, sine.damp_init) == (2.0, 1.0, 0.0, 0.01)


def test_a_transformer_of_psannlm_has_no_sine(load, capsys):
    model = load("model: {base: transformer, sine_params: {freq_init: 2.0}}\n").model
    assert model == parse(default_config("transformer")).model
    assert "sine_params is not used: mlp_activation is gelu" in capsys.readouterr().err


def test_empty_sections_say_nothing(load):
    assert load("model:\ndata:\n  tokenizer:\ntrain: {}\nseed: 3\n") == load("seed: 3\n")


def test_lengths_in_psannlm(load):
    text = "model: {base: respsann}\ntrain: {%s, batch_tokens: 32768, warmup_steps: 1}\n"
    assert load(text % "epochs: 3, steps_per_epoch: 7").train.steps == 21
    assert load(text % "epochs: 3, max_steps: 9").train.steps == 9
    assert load(text % "tokens_target: 16380000").train.steps == 499


NGT_W3_25M = """\
dataset: wikitext103
tokenizer: bpe
bpe-vocab-size: 8192
block_size: 512
batch_size: 16
gradient_accumulation_steps: 2
learning_rate: 3e-4
grad_clip: 1.0
dropout: 0.1
eval_interval: 500
seed: 42
use_cosine_schedule: true
warmup_steps: 2000
max_steps: 15000
eval_iters: 20
use_rsqrt: true
repulsion_interval: 4
vis_interval: 0
hidden_dim: 512
coord_dim: 64
num_layers: 8
num_heads: 8
mlp_dim: 2048
"""


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        ("", "ngt"),
        ("mass_in_value: true", "mass_in_value"),
        ("no_radius_cutoff: true", "no_radius"),
        ("soft_cutoff: true", "soft_cutoff"),
        ("no_repulsion: true", "no_repulsion"),
    ],
)
def test_the_runs_of_the_gravity_screening(flags, file, load):
    expected, _ = load_experiment(str(CONFIGS / "w3_25m" / f"{file}.py"), [])
    # The file of this project names the number of positions, which is data.max_length by default.
    assert load(f"{NGT_W3_25M}{flags}\n", "model.n_positions=512") == expected


def test_the_baseline_of_the_gravity_screening(load):
    expected, _ = load_experiment(str(CONFIGS / "w3_25m" / "vanilla.py"), [])
    assert load("model_type: vanilla\nmax_seq_len: 512\nmlp_dim: 1536\n") == expected


def test_without_a_cosine_there_is_no_warmup(load, capsys):
    train = load("hidden_dim: 64\nuse_cosine_schedule: false\nwarmup_steps: 9\nuse_amp: true\n").train
    assert (train.schedule, train.warmup_steps, train.precision) == ("constant", 0, "fp16")
    assert "warmup_steps is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("n_iterations: 16\nBS: 4096", "cosine_no_sam"),
        ("d_ff: 512\nsam: true", "cosine"),
        ("sam: true\ncurriculum: mixed", "mixed"),
        ("curriculum: regular\nsam: true", "regular"),
        ("d_ff: 512\nWD: 1.0", "weight_decay"),
        ("d_ff: 512\nactivation: gelu", "gelu"),
        ("d_ff: 512\nactivation: relu2", "relu2"),
        ("d_ff: 512\nema_decay: 0.999", "ema"),
        ("d_ff: 512\ntotal_steps: 50000\nwarmup_steps: 1400", "steps_50k"),
        ("d_model: 144\nd_ff: 576\ntotal_steps: 50000\nwarmup_steps: 1400", "params_1m"),
    ],
)
def test_the_runs_of_the_sudoku_study(text, file, load):
    expected, _ = load_experiment(str(CONFIGS / "sudoku" / f"{file}.py"), [])
    assert load(text + "\n") == expected


def test_every_setting_that_a_key_stands_for_exists():
    names = {name for base in families() for name, _ in flatten(default_config(base).to_dict())}
    for original in ORIGINALS.values():
        targets = {rule for rule in original.keys.values() if isinstance(rule, str)}
        assert targets <= names, original.name
        assert all(rule.why for rule in original.keys.values() if isinstance(rule, Unused))


WRONG = (None, True, "x", 0, 2**70, [], [{"path": 3}])


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_any_value_of_an_original_is_used_or_refused_in_one_line(value, tmp_path):
    path = tmp_path / "c.yaml"
    for original, marker in zip(ORIGINALS.values(), ("model.rope", "hidden_dim", "d_ff"), strict=True):
        for key in original.keys:
            mark = {marker: True if marker == "model.rope" else 64}
            path.write_text(yaml.safe_dump({**mark, key: value}))
            try:
                load_experiment(str(path), [])
            except UserError as error:
                assert "\n" not in str(error), key  # noqa: PT017
