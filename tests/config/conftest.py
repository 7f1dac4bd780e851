"""YAML config files in tests."""

import pytest

from psann_jax.config.files import load_experiment
from psann_jax.utils.errors import UserError


@pytest.fixture
def load(tmp_path):
    """Reads a text as a YAML config with overrides."""

    def read(text, *overrides):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_experiment(str(path), overrides)[0]

    return read


@pytest.fixture
def refusal(load, tmp_path):
    """The message of the error for a text, without the directory."""

    def read(text, *overrides):
        with pytest.raises(UserError) as raised:
            load(text, *overrides)
        message = str(raised.value)
        assert "\n" not in message
        return message.removeprefix(f"{tmp_path}/")

    return read
