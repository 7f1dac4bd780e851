"""Settings of generation: one set of defaults for the command line and the API, and checks."""

import dataclasses
import subprocess
import sys

import numpy as np
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


@pytest.mark.parametrize("value", [None, "0.5", True, [1], 1j], ids=repr)
@pytest.mark.parametrize("field", dataclasses.fields(Sampling), ids=lambda f: f.name)
def test_a_value_of_another_type_is_named(field, value):
    with pytest.raises(UserError, match=rf"^{field.name}: is .*, must be a (whole )?number$"):
        Sampling(**{field.name: value}).check()


@pytest.mark.parametrize("value", [None, "0.5", True, [1], 1.5, float("nan"), -1], ids=repr)
@pytest.mark.parametrize("field", dataclasses.fields(GenerationOptions), ids=lambda f: f.name)
def test_an_option_of_another_type_is_named(field, value):
    if field.name == "max_prompt_tokens" and value is None:
        return
    with pytest.raises(UserError, match=rf"^{field.name}: is .*, must be "):
        GenerationOptions(**{field.name: value}).check()


@pytest.mark.parametrize("value", [5e-324, 1e-45, 1e-39, 0.5, 3.5e38, 1.7e308, 10**400], ids=str)
def test_scalars_are_normal_numbers_of_float32(value):
    for field in ("temperature", "repetition_penalty", *(("top_p", "min_p") if value <= 1 else ())):
        sampling = Sampling(**{field: value})
        sampling.check()
        scalar = getattr(sampling.scalars(), field)
        assert np.isfinite(scalar)
        assert scalar == 0 or scalar >= np.finfo(np.float32).tiny
        assert scalar > 0 or field in ("temperature", "min_p")


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
