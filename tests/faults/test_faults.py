"""The real command, ended by real signals."""

import json
import signal
import time

import pytest
from processes import start_main
from tiny import write_text

from psann_jax.train.metrics import read_metrics

CONFIG = """
from pathlib import Path
from psann_jax.config_io import default_config

HERE = Path(__file__).parent

def get_config():
    config = default_config("transformer")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=(str(HERE / "text.txt"),), max_length=32, cache_dir=str(HERE / "cache"))
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=1500, batch_tokens=256, precision="fp32", log_every=1)
    config.checkpoint.every = 100
    return config
"""


@pytest.fixture
def flags(tmp_path):
    """The command's flags for a run of a few seconds in tmp_path."""
    write_text(tmp_path / "text.txt", n_lines=1000)
    (tmp_path / "config.py").write_text(CONFIG)
    return [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]


def wait_for_step(workdir, step, process):
    """Returns when the run has recorded a step."""
    for _ in range(600):
        if any(row["kind"] == "train" and row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl")):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_a_signal_loses_nothing_and_the_same_command_finishes_the_run(flags, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = start_main(*flags)
    wait_for_step(workdir, 120, process)
    process.send_signal(number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == code, shown
    assert not (workdir / "summary.json").exists()
    if code == 0:
        assert f"stopped by {number.name}" in shown
        last = read_metrics(workdir / "metrics.jsonl")[-1]["step"]
        assert (workdir / "checkpoints" / f"step_{last}").is_dir()
    process = start_main(*flags)
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    rows = [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, 1501))
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 1500


def test_a_second_run_in_the_same_workdir_is_refused(flags, tmp_path):
    first = start_main(*flags)
    wait_for_step(tmp_path / "run", 1, first)
    second = start_main(*flags)
    _, shown = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert shown.strip().splitlines()[-1].endswith("another process is training in this workdir")
