"""A family in a package of its own, found by its entry point: every command uses it, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment
from tests.support.tiny import write_text

ROOT = Path(__file__).parent.parent

EXPERIMENT = """
from pathlib import Path

from psann_jax.config.io import default_config

HERE = Path(__file__).parent


def get_config():
    config = default_config("parallel")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=(str(HERE / "text.txt"),), valid_fraction=0.1, max_length=32)
    config.data.update(cache_dir=str(HERE / "cache"))
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=2, batch_tokens=256, lr=1e-2, warmup_steps=1, precision="fp32")
    return config
"""
SWEEP = """
import runpy
from pathlib import Path

from psann_jax.experiments.sweeps import sweep_config


def get_config():
    common = runpy.run_path(str(Path(__file__).parent / "experiment.py"))["get_config"]()
    contenders = {base: {"model.base": base} for base in ("vanilla", "parallel")}
    return sweep_config(common, contenders, seeds=(1,))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An installed package with the example of CONTRIBUTING.md, and an experiment and a sweep with it."""
    folder = tmp_path_factory.mktemp("family")
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    (module,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (folder / "parallel_family.py").write_text(module)
    installed = folder / "parallel_family-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: parallel_family\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[psann_jax.families]\nparallel = parallel_family:FAMILY\n")
    (folder / "experiment.py").write_text(EXPERIMENT)
    (folder / "sweep.py").write_text(SWEEP)
    write_text(folder / "text.txt")
    return folder


def run(folder, command, *flags):
    """Runs a command in a process that knows the package; returns its standard output."""
    own = environment()
    own["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    whole = [sys.executable, "-m", "psann_jax", *command.split(), *flags]
    done = subprocess.run(whole, env=own, capture_output=True, text=True, timeout=300, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_is_swept_resumed_sampled_and_measured(folder):
    run(folder, "sweep", f"--config={folder}/sweep.py", f"--workdir={folder}/sweep")
    results = {r["contender"]: r for r in json.loads((folder / "sweep" / "summary.json").read_text())["results"]}
    assert {name: r["status"] for name, r in results.items()} == {"vanilla": "ok", "parallel": "ok"}
    assert results["parallel"]["val_loss"] != results["vanilla"]["val_loss"]
    assert results["parallel"]["train_flops"] == results["vanilla"]["train_flops"]

    workdir = folder / "sweep" / "runs" / "parallel_seed1"
    flags = ("--config.seed=1", "--config.train.steps=3", f"--workdir={workdir}")
    run(folder, "train", f"--config={folder}/experiment.py", *flags)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]

    text = run(folder, "generate", f"--workdir={workdir}", "--prompt=the sun", "--max_new_tokens=5", "--json")
    assert json.loads(text)["prompt"] == "the sun"

    measured = folder / "measured.json"
    run(folder, "bench throughput", f"--config={folder}/experiment.py", "--steps=2", f"--json={measured}")
    assert json.loads(measured.read_text())["contenders"][0]["name"] == "parallel"


def test_an_unknown_base_is_still_an_error(folder):
    own = environment()
    own["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    flags = [f"--config={folder}/experiment.py", "--config.model.base=paralel", "--print_config"]
    command = [sys.executable, "-m", "psann_jax.main", *flags]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 2
    assert "did you mean parallel?" in done.stderr
