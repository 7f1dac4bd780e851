"""The cost of data parallelism on simulated devices, and the time from a start to the first step, at a tiny size."""

import json
import re
import subprocess
import sys

import pytest

from psann_jax.bench import devices, start
from tests.support.tiny import write_text

CONFIG = """
from pathlib import Path
from psann_jax.config.io import default_config

def get_config():
    config = default_config("transformer")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=(str(Path(__file__).parent / "text.txt"),), valid_fraction=0.1, max_length=32)
    config.data.tokenizer.kind = "bytes"
    config.train.update(batch_tokens=256, precision="fp32")
    return config
"""


def bench(tmp_path, *arguments):
    write_text(tmp_path / "text.txt")
    (tmp_path / "config.py").write_text(CONFIG)
    name, *flags = arguments
    command = [sys.executable, "-m", "psann_jax", "bench", name, f"--config={tmp_path}/config.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tables():
    runs = [
        {"devices": n, "tokens_per_s": 1000 / n, "efficiency": 1 / n, "step_s": 0.5, "cpu_s": 0.6}
        | {"compile_s": 1.0, "peak_memory_mb": 500.0}
        for n in (1, 4)
    ]
    config = {"train": {"batch_tokens": 256, "precision": "fp32"}, "data": {"max_length": 32}}
    text = devices.report({"device": "CPU", "n_steps": 3, "config": config, "other_load": 0.1, "runs": runs})
    assert re.search(r"^ +4 +250 +25% +500\.0 +600 +1\.0 +500$", text, re.MULTILINE)
    text = start.report({"starts": [{"first_step_s": 9.0, "compile_s": 5.0}, {"first_step_s": 3.0, "compile_s": 0.2}]})
    assert re.search(r"^ +2 +3\.0 +0\.2$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_batch_is_divided_over_devices(tmp_path):
    done = bench(tmp_path, "devices", "--count=1", "--count=4", "--steps=3", f"--json={tmp_path}/result.json")
    assert done.returncode == 0, done.stderr
    one, four = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert (one["devices"], four["devices"], one["efficiency"]) == (1, 4, 1)
    assert four["efficiency"] == four["tokens_per_s"] / one["tokens_per_s"] > 0
    assert "efficiency" in done.stdout


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_rejected(tmp_path):
    done = bench(tmp_path, "devices", "--count=3", "--steps=1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: train.batch_tokens: makes micro-batches of 8 windows")


@pytest.mark.slow
def test_the_second_start_finds_text_and_programs(tmp_path):
    done = bench(tmp_path, "start", f"--json={tmp_path}/result.json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads((tmp_path / "result.json").read_text())["starts"]
    assert 0 < second["compile_s"] < second["first_step_s"] < first["first_step_s"]


@pytest.mark.slow
def test_an_error_of_the_training_command_is_reported(tmp_path):
    done = bench(tmp_path, "start", "--config.mesh.data=7")
    assert done.returncode == 2
    expected = "error: mesh.data: is 7, but there is 1 device (cpu); it must divide that number"
    assert done.stderr.splitlines()[-1] == expected
