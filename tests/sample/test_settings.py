"""Settings of generation: one set of defaults for the command line and the API, and checks."""

import subprocess
import sys

import pytest

from psann_jax.sample.settings import UNFILTERED, GenerationOptions, Sampling
from psann_jax.utils.errors import UserError
from tests.support.processes import environment


def test_the_defaults():
    assert Sampling() == Sampling(temperature=1.0, top_k=0, top_p=0.9, min_p=0.0, repetition_penalty=1.0)
    assert Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0) == UNFILTERED
    assert (GenerationOptions().max_new_tokens, GenerationOptions().overflow) == (128, "slide")
    for settings in (Sampling(), UNFILTERED, GenerationOptions()):
        settings.check()


def test_settings_do_not_import_jax():
    command = [sys.executable, "-c", "import psann_jax.sample.settings, sys; print('jax' in sys.modules)"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
    ],
)
def test_an_invalid_value_is_named(name, value):
    with pytest.raises(UserError, match=f"^{name}: is {value}, must be"):
        Sampling(**{name: value}).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: is 0, must be at least 1"),
        ({"num_samples": 0}, "num_samples: is 0"),
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens: is 0"),
        ({"stop": ("x", "")}, "stop: has an empty string"),
        ({"seed": -1}, "seed: is -1"),
        ({"overflow": "wrap"}, "overflow: is 'wrap', must be one of stop, slide"),
    ],
)
def test_an_invalid_option_is_named(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        GenerationOptions(**options).check()
