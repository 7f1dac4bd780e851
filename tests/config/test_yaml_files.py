"""YAML config files: the same settings as in Python, and errors with file and line."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.cli import sweep as sweep_command
from psann_jax.config import ConfigError
from psann_jax.config.families import families
from psann_jax.config.files import load_config_file, load_experiment
from psann_jax.config.io import default_config, flatten, parse, setting_type, to_dict
from psann_jax.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


# --- this project's settings ------------------------------------------------------------------------------


def test_the_yaml_file_of_the_repository_is_the_quickstart():
    quickstart, _ = load_experiment(str(CONFIGS / "quickstart.py"), [])
    assert load_experiment(str(CONFIGS / "yaml" / "waveresnet.yaml"), [])[0] == quickstart


def test_nested_and_dotted_keys_mean_the_same(load):
    nested = "model:\n  base: respsann\n  sine:\n    freq_init: 2\ntrain:\n  lr: 1e-3\neval:\n"
    dotted = "model.base: respsann\nmodel.sine.freq_init: 2.0\ntrain.lr: 0.001\n"
    assert (
        load(nested) == load(dotted) == load("model.sine: {freq_init: 2}\ntrain: {lr: 1e-3}\nmodel: {base: respsann}")
    )
    assert load(nested).model.sine.freq_init == 2.0


def test_overrides_act_on_top(load):
    text = "model: {base: waveresnet, wave: {interleave: true}}\ntrain.lr: 0.1\n"
    assert load(text, "train.lr=0.2").train.lr == 0.2
    assert load(text, "model.base=vanilla").model.base == "vanilla"
    assert load("train.steps: 0\n", "train.steps=3").train.steps == 3


def test_lists_are_tuples_and_one_value_is_a_tuple_of_one(load):
    assert load("data.sources: [a.txt, b.txt]\ndata.weights: [1, 3e-1]\n").data.weights == (1.0, 0.3)
    assert load("data.sources: a.txt\n").data.sources == ("a.txt",)
    assert load("train.betas: [0.8, 9e-1]\n").train.betas == (0.8, 0.9)
    assert load("data.text_field: '1e3'\n").data.text_field == "1e3"
    assert load("model: {norm: null, residual_alpha: yes}\n").model.residual_alpha is True


def values(hint, default):
    """Random values of a setting's type."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(1 - 2**63, 2**63 - 1)
    if isinstance(default, float):
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(default, str) and hint is str:
        return st.text()
    if hint == tuple[str, ...]:
        return st.lists(st.text()).map(tuple)
    return st.just(default)


NAMES = {base: dict(flatten(default_config(base).to_dict())) for base in families()}


@pytest.mark.parametrize("base", families())
def test_the_settings_that_a_run_has_written_are_a_config_file(base, tmp_path):
    config = default_config(base)
    config.train.lr = 1e-6  # no dot, so YAML by itself would take it for text
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(parse(config))))
    assert parse(load_config_file(str(path))) == parse(config)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_settings_survive_yaml(tmp_path_factory, data):
    base = data.draw(st.sampled_from(sorted(families())))
    changeable = sorted(NAMES[base].keys() - {"model.base"})
    chosen = data.draw(st.lists(st.sampled_from(changeable), unique=True, max_size=8))
    given_values = {n: data.draw(values(setting_type(base, n), NAMES[base][n])) for n in chosen}
    nested = {"model": {"base": base}}
    for name, value in given_values.items():
        *sections, leaf = name.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    dotted = dict(flatten(nested))
    written = {name: list(value) if isinstance(value, tuple) else value for name, value in dotted.items()}
    path = tmp_path_factory.getbasetemp() / "round_trip.yml"
    for content in (nested, written):
        path.write_text(yaml.safe_dump(content))
        assert dict(flatten(load_config_file(str(path)).to_dict())) == {**NAMES[base], **dotted}


@pytest.mark.parametrize("base", families())
def test_the_settings_of_every_base_survive_yaml(base, load):
    config = parse(default_config(base))
    as_lists = {n: list(v) if isinstance(v, tuple) else v for n, v in flatten(to_dict(config))}
    assert load(yaml.safe_dump(as_lists)) == config


# --- errors -------------------------------------------------------------------------------------------------

REFUSED = {
    "train:\n  lrr: 1\n": "c.yaml:2: train.lrr: unknown key, did you mean train.lr?",
    "train:\n  lr: fast\n": "c.yaml:2: train.lr: is 'fast', must be of type float",
    "train.steps: 1.5\n": "c.yaml:1: train.steps: is 1.5, must be of type int",
    "train.steps: true\n": "c.yaml:1: train.steps: is True, must be of type int",
    "seed: 1\ntrain: 5\n": "c.yaml:2: train: is a section; indent its settings below it, such as train.batch_tokens",
    "seed: 1\nseed: 2\n": "c.yaml:2: seed: is set twice, also in line 1",
    "train.lr: 1\ntrain:\n  lr: 1\n": "c.yaml:3: train.lr: is set twice, also in line 1",
    "model:\n  base: gpt2\n": "c.yaml:2: model.base: unknown base 'gpt2'; choose from ",
    "model:\n  base: ngt\n  norm: rmsnorm\n": "c.yaml:3: model.norm: is no setting of base ngt",
    "model.norm: batchnorm\n": "c.yaml:1: model.norm: is 'batchnorm', must be one of rmsnorm, layernorm",
    "a: &a {lr: 1}\ntrain: *a\n": "c.yaml:1: is used again by an alias (*NAME); write the settings out instead",
    "a: &a [*a]\n": "c.yaml:1: is used again by an alias",
    "? [a]\n: 1\n": "c.yaml:1: a key must be the name of a setting",
    "train: [\n": "c.yaml:2: is not YAML: ",
    "a: 1\n---\nb: 2\n": "c.yaml:2: is not YAML: ",
    "data.text_field: !!python/object/apply:os.system [true]\n": "c.yaml:1: data.text_field: has a value that cannot",
    "seed: !!timestamp x\n": "c.yaml:1: seed: has a value that cannot be read",
    "": "c.yaml: holds no settings; write KEY: VALUE lines",
    "- seed: 1\n": "c.yaml: holds no settings; write KEY: VALUE lines",
    "a: \x01\n": "c.yaml: is not YAML: ",
    "data: {sources: [{path: a.txt}], pack: true}\n": "c.yaml:1: data.sources[0]: is {'path': 'a.txt'}, must be",
    "model.rope: true\ntrain.steps: 3\n": "c.yaml:1: model.rope: is a key of psannlm, but train.steps is one of",
    "hidden_dim: 64\nnum_layers: 2\nd_ff: 8\n": "c.yaml:3: d_ff: is a key of Sudoku study, but hidden_dim is one",
    "rope: 1\n": "c.yaml:1: rope: is 1, must be one of true, false",
    "rope: true\npositional_encoding: alibi\n": "c.yaml:2: positional_encoding: contradicts line 1",
    "seed: 1\nlr: 1e-3\n": "c.yaml:2: lr: unknown key, did you mean train.lr?",
    "learning_rate: 1e-3\n": "c.yaml:1: learning_rate: unknown key, did you mean train.lr?",
    "d_model: 64\nn_layers: 2\n": "c.yaml:1: d_model: unknown key, did you mean model.d_model?",
    "soft_cutoff: true\nno_radius_cutoff: true\n": "c.yaml:2: no_radius_cutoff: contradicts line 1",
    "train: {epochs: x, lr: 1}\n": "c.yaml: epochs: is 'x', must be a whole number of at least 1",
    "bench:\n  bases: [a]\n": "c.yaml:2: bench.bases: a sweep is a Python file here",
    "hidden_dim: 64\nbatch_size: x\n": "c.yaml: batch_size: is 'x', must be a whole number of at least 1",
    "model_type: vanilla\ncoord_dim: 8\n": "c.yaml:2: coord_dim: is no setting of base vanilla",
    "train: {distill_alpha: 0.5, epochs: 1}\n": "c.yaml:1: train.distill_alpha: is 0.5, must be 0",
    "base: geosparse\nrope: true\n": "c.yaml: model.base: unknown base 'geosparse'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_an_error_names_file_and_line(text, refusal):
    assert refusal(text).startswith(REFUSED[text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\ntrain:\n  steps: 0\n", "train.steps: is 0, must be at least 1 (c.yaml:3: train.steps)"),
        ("rope: true\ntrain.grad_accum_steps: 0\n", "train.grad_accum: is 0, must be at least 1 (c.yaml:2: "),
        ("model.wave.kernel: 5\n", "model.wave.kernel: has no effect without model.wave.interleave or "),
    ],
)
def test_a_value_that_does_not_fit_the_others_is_located(text, expected, load, tmp_path):
    with pytest.raises(ConfigError) as raised:
        load(text)
    message = str(raised.value).replace(f"{tmp_path}/", "")
    assert message.startswith(expected)
    assert message.endswith(")")


def test_an_error_in_an_override_names_no_line(load):
    with pytest.raises(ConfigError, match=r"^train\.steps: is 0, must be at least 1$"):
        load("train.steps: 5\n", "train.steps=0")


def test_nesting_without_end_is_one_line(refusal):
    assert "nested too deeply" in refusal("a: " + "[" * 5000)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-{}[]&*!#'\"|>?%@, \n\tmodeltrain.1"), max_size=60))
def test_any_text_is_settings_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    try:
        load_config_file(str(path))
    except UserError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def test_a_yaml_file_takes_no_argument_and_is_no_sweep(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"c\.yaml: is a yaml file, which takes no argument; omit :small"):
        load_config_file(f"{path}:small")
    with pytest.raises(UserError, match=r"^--config: .*c\.yaml: a sweep is a Python file"):
        sweep_command.main([f"--config={path}"])
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(UserError, match=r"c\.yaml: is not YAML"):
        load_config_file(str(path))
