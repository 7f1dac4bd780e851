"""Speeds for the budget "seconds": what they are measured for, and in which process."""

import json
import subprocess
import sys

import pytest

from psann_jax.experiments import speeds
from psann_jax.experiments.budgets import with_settings
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.speeds import Speeds
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment
from tests.support.sweeps import small_sweep


@pytest.fixture
def measured(monkeypatch):
    """Replaces measurements by 100, 101, ... tokens/s, and returns the measured configs."""
    configs = []

    def measure(config):
        configs.append(config)
        return {"tokens_per_s": 99.0 + len(configs), "device": "here", "versions": {}}

    monkeypatch.setattr(speeds, "_measure", measure)
    monkeypatch.setattr(speeds, "_device", lambda: "here")
    return configs


@pytest.fixture
def config():
    return all_cases(small_sweep(seeds=(1,)))[0].config


@pytest.mark.parametrize(
    "changes",
    [
        {"train.sam_rho": 0.05},
        {"train.optimizer": "muon"},
        {"train.remat": "block"},
        {"train.grad_accum": 2},
        {"train.ema_decay": 0.99},
        {"train.label_smoothing": 0.1},
        {"train.scan_layers": False},
        {"train.precision": "bf16"},
        {"train.batch_tokens": 128},
        {"mesh.fsdp": 2},
        {"model.dropout": 0.1},
        {"model.norm": "layernorm"},
        {"data.max_length": 32},
        {"data.document_mask": False},
        {"data.pack": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_setting_that_changes_the_program_is_measured_again(measured, config, tmp_path, changes):
    speed = Speeds(tmp_path)
    assert speed(config) == 100
    assert speed(with_settings(config, changes)) == 101
    assert Speeds(tmp_path)(config) == 100
    assert len(measured) == 2


@pytest.mark.parametrize(
    "changes", [{"train.steps": 7}, {"train.lr": 0.5}, {"seed": 9}, {"eval.max_tokens": 64}, {"data.cache_dir": "x"}]
)
def test_other_settings_share_a_measurement(measured, config, tmp_path, changes):
    speed = Speeds(tmp_path)
    assert speed(config) == speed(with_settings(config, changes)) == 100


def test_another_device_is_measured_again(measured, config, tmp_path, monkeypatch):
    assert Speeds(tmp_path)(config) == 100
    monkeypatch.setattr(speeds, "_device", lambda: "there")
    assert Speeds(tmp_path)(config) == 101
    kept = json.loads((tmp_path / "speeds.json").read_text())
    assert [entry["tokens_per_s"] for entry in kept.values()] == [100, 101]


def test_a_failed_measurement_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setattr(speeds, "_device", lambda: "here")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 1))
    with pytest.raises(UserError, match="transformer: measuring its speed failed"):
        Speeds(tmp_path)(config)


PARENT = """
import sys
from pathlib import Path
from psann_jax.experiments import speeds
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.report import write_report
from tests.support.sweeps import make_outcome, small_sweep

speeds._measure = lambda config: {"tokens_per_s": 100.0, "device": "a TPU", "versions": {}}
workdir = Path(sys.argv[1])
sweep = small_sweep(seeds=(1,), budgets=("flops", "parameters", "seconds"))
cases = all_cases(sweep, speed=speeds.Speeds(workdir))
write_report("one", [make_outcome(case, 3.0) for case in cases], len(cases), "transformer", workdir)

from jax._src import xla_bridge
print("initialised" if xla_bridge.backends_are_initialized() else "free", speeds._device())
"""


@pytest.mark.slow
def test_the_process_of_a_sweep_leaves_the_devices_to_its_runs(tmp_path):
    """A TPU belongs to the first process that asks JAX for its devices."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    state, device = done.stdout.strip().split(maxsplit=1)
    assert state == "free"
    assert device.startswith("1 x CPU (")
    assert json.loads((tmp_path / "summary.json").read_text())["system"]["devices"] == ["1 x CPU (test)"]
