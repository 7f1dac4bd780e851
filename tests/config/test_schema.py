"""Every key acts or raises, and the way to ConfigDict and JSON loses nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections.config_flags import config_flags  # noqa: F401  config files need it to be importable

from psann_jax.config import PRESETS, Config, ConfigError, DataConfig, DecoderConfig, SineConfig, WaveConfig
from psann_jax.config.families import families
from psann_jax.config.io import default_config, flatten, parse, to_dict, upgrade_saved
from psann_jax.experiments.cases import all_cases

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.name != "shared.py")


def parse_with(name, value):
    """Parses the defaults with one setting changed."""
    mapping = to_dict(Config())
    *parents, leaf = name.split(".")
    node = mapping
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return parse(mapping)


@pytest.mark.parametrize("base", families())
def test_defaults_survive_config_dict_and_json(base):
    config = parse(default_config(base))
    assert config.model.base == base
    assert parse(json.loads(json.dumps(to_dict(config)))) == config


def test_defaults_equal_the_dataclasses():
    assert parse(default_config()) == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_parses_and_tells_command_hardware_and_results(path):
    namespace = {}
    source = path.read_text()
    exec(compile(source, str(path), "exec"), namespace)
    config = namespace["get_config"]()
    if path.parent.name in ("sweeps", "bench"):
        assert all_cases(config, speed=lambda _: 1000.0)
    else:
        parse(config)
    doc = namespace["__doc__"]
    assert f"--config={path.relative_to(ROOT)}" in doc
    special = {"sudoku": ("puzzles/s", "solved"), "sweeps": ("runs",), "bench": ("runs",)}
    wanted = special.get(path.parent.name, ("tokens/s", "loss"))
    assert all(word in doc for word in wanted)


REFUSED = {
    "seed": (-1, "seed: is -1"),
    "train.lrr": (1, "train.lrr: unknown key, did you mean lr?"),
    "optim": ({}, "optim: unknown key"),
    "model.base": (
        "respsan",
        "did you mean respsann?; choose from modern, ngt, respsann, sgrpsann, sudoku, ",
    ),
    "model.mlp_activation": ("swish", "must be one of sine, gelu, relu, relu2, silu, swiglu, snake, scaled_gelu"),
    "model.logit_softcap": (-1.0, "model.logit_softcap: is -1.0, must be at least 0"),
    "model.d_model": (100, "model.d_model: is 100, must be divisible by model.n_heads=8"),
    "model.n_heads": (0, "model.n_heads: is 0, must be at least 1"),
    "model.n_kv_heads": (3, "model.n_kv_heads: is 3, must divide model.n_heads=8"),
    "model.qk_norm": (1, "model.qk_norm: is 1, must be of type bool"),
    "model.sliding_window": (1024, "has no effect with data.max_length=1024; leave it at 0"),
    "model.dropout": (1.0, "model.dropout: is 1.0, must be at least 0 and below 1"),
    "model.wave.kernel": (5, "has no effect without model.wave.interleave or model.wave.replace"),
    "model.spectral.k_fft": (8, "has no effect with base waveresnet, only with sgrpsann"),
    "model.sine.amp_init": (0.0, "model.sine.amp_init: is 0.0, must be positive"),
    "model.sine.freq_range": ((1.0, 2.0), "cannot be used together with freq_init_std"),
    "model.sine.freq_bounds": ((2.0, 1.0), "needs 0 <= low <= high"),
    "model.sine.learnable": (("phase",), "unknown parameter 'phase', choose from amplitude, frequency, decay"),
    "data.sources": ((), "data.sources: is empty"),
    "data.weights": ((1.0, 2.0), "has 2 values for 1 sources"),
    "data.valid_fraction": (1.5, "must be between 0 and 1"),
    "data.max_length": (1000, "train.batch_tokens: is 32768, must be a multiple of"),
    "data.pack": (1, "data.pack: is 1, must be of type bool"),
    "data.tokenizer.kind": ("bpee", "did you mean bpe?"),
    "train.lr": (-1e-3, "train.lr: is -0.001, must be positive"),
    "train.lr ": (1e-3, "unknown key"),
    "train.steps": (1.5, "train.steps: is 1.5, must be of type int"),
    "train.warmup_steps": (2**31, "train.warmup_steps: is 2147483648, must be below 2**31"),
    "data.split_seed": (2**63, "data.split_seed: is 9223372036854775808, must be below 2**63"),
    "train.betas": ((0.9,), "needs 2 values"),
    "train.decay_fraction": (0.5, "has no effect with schedule cosine"),
    "train.grad_accum": (3, "must be a multiple of data.max_length * train.grad_accum = 3072"),
    "checkpoint.keep_every": (750, "must be a multiple of checkpoint.every=500"),
    "mesh.data": (0, "mesh.data: is 0, must be positive, or -1 for the rest"),
    "mesh.fsdp": (-1, "only one axis can be -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_cannot_be_used_is_named(name):
    value, message = REFUSED[name]
    with pytest.raises(ConfigError, match=r"^[a-z_. ]+: ") as raised:
        parse_with(name, value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("weights", [(1e300, 1e-300), (1e-320, 1.0), (1e308, 1e308), (float("inf"), 1.0)])
def test_weights_of_sources_are_numbers_that_can_be_compared(weights):
    with pytest.raises(ConfigError, match=r"^data\.weights: is \(.*\); their sum must be finite, and none "):
        DataConfig(sources=("a", "b"), weights=weights).check("data")
    DataConfig(sources=("a", "b"), weights=(1e-6, 2.0)).check("data")


@pytest.mark.parametrize("name", ["n_kv_heads", "sliding_window"])
def test_negative_sizes_of_attention_are_refused(name):
    with pytest.raises(ConfigError, match=rf"^model\.{name}: is -1, must be at least 0$"):
        parse_with(f"model.{name}", -1)


@pytest.mark.parametrize("base", ["ngt", "vanilla", "sudoku"])
@pytest.mark.parametrize("name", ["n_kv_heads", "qk_norm", "sliding_window"])
def test_options_of_a_decoders_attention_are_unknown_elsewhere(base, name):
    config = default_config(base)
    mapping = config.to_dict()
    mapping["model"][name] = 1
    with pytest.raises(ConfigError, match=rf"^model\.{name}: unknown key"):
        parse(mapping)


def test_options_of_another_activation_are_refused():
    mapping = to_dict(Config())
    mapping["model"].update(base="transformer")
    parse(mapping)
    mapping["model"]["sine"]["amp_init"] = 2.0
    with pytest.raises(ConfigError, match=r"model\.sine\.amp_init: has no effect without the sine activation"):
        parse(mapping)
    mapping["model"]["mlp_activation"] = "sine"
    assert parse(mapping).model.sine.amp_init == 2.0


@pytest.mark.parametrize("activation", ["snake", "scaled_gelu"])
def test_activations_with_a_frequency_take_the_settings_of_the_frequency_only(activation):
    for key, value in {"freq_init": 0.5, "freq_init_std": 0.0, "freq_bounds": (0.1, 9.0), "trainable": False}.items():
        section = dataclasses.replace(Config().model, mlp_activation=activation, sine=SineConfig(**{key: value}))
        section.check("model")
    for key, value in {"amp_init": 2.0, "damp_bounds": (0.0, 1.0), "decay_mode": "none", "learnable": ()}.items():
        section = dataclasses.replace(Config().model, mlp_activation=activation, sine=SineConfig(**{key: value}))
        with pytest.raises(ConfigError, match=rf"model\.sine\.{key}: has no effect with mlp_activation {activation}"):
            section.check("model")
    section = dataclasses.replace(Config().model, mlp_activation=activation, sine=SineConfig(freq_init=-1.0))
    with pytest.raises(ConfigError, match=r"model\.sine\.freq_init: is -1\.0, must be positive"):
        section.check("model")


@pytest.mark.parametrize(
    ("sine", "message"),
    [
        (
            {"decay_mode": "none", "damp_init": 0.5},
            r"damp_init: has no effect with decay_mode none; leave it at 0\.001",
        ),
        ({"trainable": False, "learnable": ("decay",)}, "learnable: has no effect with trainable False"),
    ],
)
def test_settings_of_the_sine_without_effect_are_refused_but_load_from_saved_runs(sine, message):
    mapping = to_dict(Config())
    mapping["model"]["sine"].update(sine)
    with pytest.raises(ConfigError, match=rf"^model\.sine\.{message}"):
        parse(mapping)
    changed = dict(list(sine.items())[:1])
    assert parse(upgrade_saved(mapping)).model.sine == SineConfig(**changed)


@pytest.mark.parametrize("option", ["interleave", "replace"])
def test_a_wave_block_has_no_swiglu(option):
    section = DecoderConfig(mlp_activation="swiglu", wave=WaveConfig(**{option: True}))
    with pytest.raises(ConfigError, match=r"^model\.mlp_activation: swiglu .* wave block .* use silu$"):
        section.check("model")
    dataclasses.replace(section, mlp_activation="silu").check("model")


def test_every_base_resolves_what_its_config_leaves_open():
    for base in PRESETS:
        resolved = parse(default_config(base)).model.resolve()
        assert None not in dataclasses.astuple(resolved)
    gelu = dataclasses.replace(Config().model, mlp_activation="gelu")
    assert gelu.resolve().mlp_activation == "gelu"


@pytest.mark.parametrize("base", PRESETS)
def test_only_modern_normalises_queries_and_keys_by_default(base):
    assert DecoderConfig(base=base).resolve().qk_norm is (base == "modern")
    for asked in (True, False):
        config = default_config(base)
        config.model.qk_norm = asked
        assert parse(config).model.resolve().qk_norm is asked


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(dict(flatten(to_dict(Config()))))), st.text("abcdefghij_", min_size=1, max_size=3))
def test_any_misspelt_key_is_refused(name, suffix):
    with pytest.raises(ConfigError, match="unknown key"):
        parse_with(name + suffix, 1)


def test_windows_are_divided_over_context_or_for_sequence():
    mapping = to_dict(Config())
    mapping["mesh"].update(context=2, tensor=2, sequence=True)
    with pytest.raises(ConfigError, match=r"^mesh\.sequence: cannot be used with mesh\.context, which divides all"):
        parse(mapping)


@pytest.mark.parametrize("size", [2, -1])
def test_puzzles_are_not_divided_over_devices(size):
    mapping = default_config("sudoku").to_dict()
    mapping["mesh"].update(data=1, context=size)
    with pytest.raises(ConfigError, match=r"^mesh\.context: has no effect with base sudoku, which reads no windows"):
        parse(mapping)


def test_sample_texts_have_no_effect_on_puzzles():
    mapping = default_config("sudoku").to_dict()
    mapping["eval"]["prompts"] = ("5 3",)
    with pytest.raises(ConfigError, match=r"^eval\.prompts: has no effect with base sudoku; leave it at \(\)$"):
        parse(mapping)
