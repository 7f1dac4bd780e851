"""Config files with overrides: values, their types, and another base."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import ConfigError
from psann_jax.config.families import families
from psann_jax.config.files import apply_overrides, load_config_file, load_experiment
from psann_jax.config.io import default_config, flatten, parse, to_dict
from psann_jax.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.py")


def overridden(*overrides, base="waveresnet"):
    config = default_config(base)
    apply_overrides(config, overrides)
    return dict(flatten(config.to_dict()))


VALUES = {
    "train.lr=2e-3": 2e-3,
    "train.steps=7": 7,
    "data.pack=false": False,
    "nodata.pack": False,
    "data.pack": True,
    "data.text_field=body": "body",
    "data.cache_dir=": "",
    "data.sources=a.txt": ("a.txt",),
    "data.sources=('a.txt', 'b.txt')": ("a.txt", "b.txt"),
    "data.sources=['a.txt']": ("a.txt",),
    "data.sources=('a,b.txt',)": ("a,b.txt",),
    "data.weights=0.5,0.5": (0.5, 0.5),
    "data.weights=()": (),
    "model.norm=layernorm": "layernorm",
    "model.residual_alpha=True": True,
    "model.residual_alpha=None": None,
}


@pytest.mark.parametrize("override", VALUES)
def test_an_override_has_the_type_of_its_setting(override):
    assert overridden(override)[override.partition("=")[0].removeprefix("no")] == VALUES[override]


REFUSED = {
    "train.steps=abc": "--config.train.steps: is 'abc', must be a whole number",
    "train.steps=1.5": "--config.train.steps: is '1.5', must be a whole number",
    "train.steps": "--config.train.steps: has no value; must be a whole number",
    "train.lr=fast": "--config.train.lr: is 'fast', must be a number",
    "data.pack=maybe": "--config.data.pack: is 'maybe', must be true or false",
    "nodata.pack=true": "--config.nodata.pack: write --config.data.pack=VALUE, with true or false",
    "notrain.lr": "--config.notrain.lr: write --config.train.lr=VALUE, with a number",
    "lr=1": "--config.lr: unknown key, did you mean train.lr?",
    "train.learning_rate=1": "--config.train.learning_rate: unknown key, did you mean train.lr?",
    "data=x": "--config.data: is a section; change one of its settings, such as --config.data.cache_dir",
    "data.sources=a.txt,b.txt": "--config.data.sources: is 'a.txt,b.txt', must be a tuple: "
    "--config.data.sources=\"('a.txt', 'b.txt')\"",
    "data.sources=('a.txt'": "must be a tuple: --config.data.sources=\"('a.txt',)\"",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_says_what_is_right(override):
    with pytest.raises(ConfigError) as raised:
        overridden(override)
    assert REFUSED[override] in str(raised.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(overridden())), st.text(max_size=20))
def test_any_text_is_a_value_or_a_config_error(name, text):
    try:
        overridden(f"{name}={text}")
    except ConfigError as error:
        assert str(error).startswith(f"--config.{name}: ")  # noqa: PT017


@pytest.mark.parametrize(
    ("overrides", "fraction"),
    [
        ((), 0.03),
        (("data.valid_sources=v.txt",), 0.01),
        (("data.valid_sources=v.txt", "data.valid_fraction=0.2"), 0.2),  # refused when the text is opened
        (("data.valid_sources=()",), 0.03),
        (("data.sources=a.txt",), 0.03),
    ],
)
def test_a_validation_text_replaces_the_split_of_the_file(overrides, fraction):
    assert load_experiment(QUICKSTART, overrides)[0].data.valid_fraction == fraction


@pytest.mark.parametrize("base", families())
def test_printed_settings_are_overrides(base):
    """Each line of --print_config, as an override, restores its setting."""
    config = parse(default_config(base))
    printed = [f"{name}={value}" for name, value in flatten(to_dict(config))]
    assert parse(default_config(base)) == parse_with(printed, base) == config


def parse_with(overrides, base):
    changed = default_config(base)
    apply_overrides(changed, overrides)
    return parse(changed)


# --- another base ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [base for base in families() if base != "sudoku"])
def test_a_base_on_the_command_line_needs_no_other_change(base):
    config, dropped = load_experiment(QUICKSTART, [f"model.base={base}"])
    assert (config.model.base, config.model.d_model, config.data.max_length) == (base, 128, 256)
    assert dropped == ({} if base == "waveresnet" else {"model.wave.interleave": True})


def test_only_settings_of_the_file_are_dropped():
    for override, message in (
        ("model.wave.interleave=true", "has no effect with base respsann"),
        ("model.spectral.k_fft=8", "has no effect with base respsann"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_experiment(QUICKSTART, ["model.base=respsann", override])
    with pytest.raises(ConfigError, match=r"model\.wave\.interleave: unknown key"):
        load_experiment(QUICKSTART, ["model.base=vanilla", "model.wave.interleave=true"])
    with pytest.raises(ConfigError, match=r"model\.wave\.kernel: has no effect"):  # no other base was chosen
        load_experiment(QUICKSTART, ["model.wave.interleave=false", "model.wave.kernel=5"])
    file = str(CONFIGS / "w3_25m" / "ngt.py")
    with pytest.raises(ConfigError, match=r"train\.end_lr_ratio: has no effect with schedule constant"):
        load_experiment(file, ["model.base=vanilla", "train.schedule=constant"])


def test_settings_that_stay_active_with_the_new_base_are_kept(tmp_path):
    path = tmp_path / "sine.py"
    path.write_text(
        "from psann_jax.config.io import default_config\n"
        "def get_config():\n    config = default_config('respsann')\n    config.model.sine.freq_init = 3.0\n"
        "    config.model.norm = 'layernorm'\n    return config\n"
    )
    config, dropped = load_experiment(str(path), ["model.base=transformer"])
    assert dropped == {"model.sine.freq_init": 3.0}
    assert config.model.norm == "layernorm"
    config, dropped = load_experiment(str(path), ["model.base=transformer", "model.mlp_activation=sine"])
    assert not dropped
    assert config.model.sine.freq_init == 3.0
    config, dropped = load_experiment(str(path), ["model.base=ngt"])
    assert dropped == {"model.sine.freq_init": 3.0, "model.norm": "layernorm"}


def test_a_value_that_the_new_base_does_not_allow_is_not_used(tmp_path):
    """The user did not choose it for that base; one that no base allows, or that the command line sets, is an error."""
    path = tmp_path / "config.py"
    text = (
        "from psann_jax.config.io import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.model.attention = '{}'\n    config.model.d_model = 64\n    return config\n"
    )
    path.write_text(text.format("cudnn"))
    config, dropped = load_experiment(str(path), ["model.base=ngt"])
    assert (config.model.attention, config.model.d_model) == ("auto", 64)
    assert dropped == {"model.attention": "cudnn"}
    config, dropped = load_experiment(str(path), ["model.base=ngt", "model.attention=plain"])
    assert (config.model.attention, dropped) == ("plain", {"model.attention": "cudnn"})
    config, dropped = load_experiment(str(path), ["model.base=transformer"])
    assert (config.model.attention, dropped) == ("cudnn", {})
    with pytest.raises(ConfigError, match=r"model\.attention: is 'cudnn', must be one of auto, pallas, tiled, plain"):
        load_experiment(str(path), ["model.base=ngt", "model.attention=cudnn"])
    path.write_text(text.format("fast"))
    with pytest.raises(ConfigError, match=r"model\.attention: is 'fast'"):
        load_experiment(str(path), ["model.base=ngt"])


def test_an_unknown_base_lists_the_bases():
    with pytest.raises(ConfigError) as raised:
        load_experiment(QUICKSTART, ["model.base=gpt2"])
    assert str(raised.value) == f"model.base: unknown base 'gpt2'; choose from {', '.join(families())}"


# --- files ----------------------------------------------------------------------------------------------


def test_a_sweep_is_no_experiment():
    with pytest.raises(UserError, match=r"bases_cpu\.py is a sweep; run it with psann-jax sweep"):
        load_experiment(str(CONFIGS / "sweeps" / "bases_cpu.py"), [])


@pytest.mark.parametrize(
    "content",
    ["x = 1", "def get_config():\n    return None", "def get_config():\n    return {'train': 1}", "get_config = 3"],
)
def test_a_file_without_settings_is_named(content, tmp_path):
    (tmp_path / "c.py").write_text(content)
    with pytest.raises(UserError, match=r"c\.py: ") as raised:
        load_config_file(str(tmp_path / "c.py"))
    assert "\n" not in str(raised.value)


def test_a_misspelt_setting_in_a_file_is_named(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from psann_jax.config.io import default_config\ndef get_config():\n    config = default_config('respsann')\n"
        "    with config.unlocked():\n        config.train.lrr = 1.0\n    return config\n"
    )
    for overrides in ([], ["model.base=ngt"]):
        with pytest.raises(ConfigError, match=r"train\.lrr: unknown key"):
            load_experiment(str(path), overrides)


COLONS = {
    "12:30/config.json": 11,
    "a:b.py": 0,
    "a:b.py:7": 1,
    "plain.py:7": 1,
    "plain.py:x:y": 3,
    "~/plain.py": 0,
}


@pytest.mark.parametrize("name", COLONS)
def test_a_path_may_have_colons_and_a_tilde(tmp_path, monkeypatch, name):
    """The seed of the experiment is the length of its argument."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = default_config("respsann")
    config.seed = 11
    (tmp_path / "12:30").mkdir()
    (tmp_path / "12:30" / "config.json").write_text(json.dumps(config.to_dict()))
    lines = ("config = default_config('respsann')", "config.seed = len(argument)", "return config")
    source = "\n    ".join(("def get_config(argument=''):", *lines))
    for file in ("a:b.py", "plain.py"):
        (tmp_path / file).write_text(f"from psann_jax.config.io import default_config\n{source}\n")
    experiment, _ = load_experiment(name, [])
    assert experiment.seed == COLONS[name]
    with pytest.raises(UserError, match=r"^no/b: there is no such config file$"):
        load_experiment("no/b:c", [])


def test_a_copy_of_a_config_elsewhere_finds_what_it_imports(tmp_path):
    """As with the console script, whose path does not have the current directory."""
    copy = tmp_path / "my_rates.py"
    copy.write_text((CONFIGS / "sweeps" / "learning_rates.py").read_text())
    code = "import sys; from psann_jax.config.files import load_config_file; sys.path[:] = sys.path[1:]"
    code += f"; load_config_file({str(copy)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
