"""The measurement of a start, and config files written from settings."""

import dataclasses
import runpy

import pytest

from psann_jax.bench.config_file import write_config_file
from psann_jax.bench.start import measure, report
from psann_jax.config.io import parse, to_dict
from psann_jax.utils.errors import UserError
from tests.support.tiny import tiny_config


def test_a_written_config_file_restores_the_settings(tmp_path):
    config = tiny_config(tmp_path)
    path = write_config_file(to_dict(config), tmp_path)
    assert parse(runpy.run_path(str(path))["get_config"]()) == config


@pytest.mark.slow
def test_the_second_start_is_measured_too(tmp_path):
    result = measure(tiny_config(tmp_path), 2)
    assert len(result["starts"]) == 2
    for start in result["starts"]:
        assert 0 < start["compile_s"] < start["first_step_s"]
    assert len(report(result).splitlines()) == 3


@pytest.mark.slow
def test_an_error_of_the_training_command_is_reported(tmp_path):
    config = tiny_config(tmp_path)
    data = dataclasses.replace(config.data, sources=(str(tmp_path / "nowhere.txt"),))
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        measure(dataclasses.replace(config, data=data), 2)
