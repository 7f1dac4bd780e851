"""Runs on a Ray cluster: a node that is killed, signals, and nodes that see another disk."""

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from psann_jax.engines import cluster
from psann_jax.engines.cluster import RayEngine
from psann_jax.engines.engine import NoWatch
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment
from tests.support.ray_nodes import kill_node, two_nodes
from tests.support.tiny import write_text


@pytest.fixture
def marker(tmp_path):
    with cluster._marker(tmp_path / "out", "--workdir") as found:
        yield found


def test_a_job_gets_a_place_of_its_node(marker, tmp_path):
    def job(place):
        assert (place.stopping(), place.shows_output, place.shares, place.environment) == (
            False,
            False,
            True,
            {"A": "b"},
        )
        marker.path.unlink()
        time.sleep(cluster._MARKER_S)
        return f"{place.stopping()} {Path.cwd()}"

    assert cluster._do(job, marker, {"A": "b"}, True) == f"True {Path.cwd()}"


def test_a_worker_that_is_to_exit_lets_its_job_save(marker, monkeypatch, default_signals):
    """Ray raises KeyboardInterrupt in a worker whose task is cancelled, and SystemExit in one that gets SIGTERM."""
    monkeypatch.setattr(cluster, "_POLL_S", 0.01)
    seen = []

    def job(place):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            time.sleep(0.2)
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            seen.append(place.stopping())

    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    try:
        with pytest.raises(SystemExit) as exiting:
            cluster._do(job, marker, {}, True)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert exiting.value.code == 7
    assert seen == [False, True, True]


@pytest.mark.parametrize("content", [None, "another start"])
def test_a_node_that_sees_another_workdir_is_named(marker, content):
    marker.path.unlink() if content is None else marker.path.write_text(content)
    error = cluster._do(lambda place: pytest.fail("has run"), marker, {}, True)
    workdir = marker.path.parent
    assert (
        error == f"--workdir: {workdir} is not the same folder on {socket.gethostname()}; choose one that all nodes see"
    )


def test_the_marker_does_not_outlive_a_sweep(tmp_path):
    with contextlib.suppress(KeyError), cluster._marker(tmp_path / "out", "--workdir") as found:
        assert found.is_seen()
        raise KeyError
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "used", "expected"),
    [
        (None, 0.0, {}),
        (0.0, 0.0, {"JAX_PLATFORMS": "cpu"}),
        (0.5, 0.5, dict.fromkeys(("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"), "0.3750")),
        (2.0, 2.0, {}),
    ],
)
def test_runs_use_the_cores_and_gpus_that_they_asked_for(monkeypatch, tmp_path, given, used, expected):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    engine = RayEngine(tmp_path, cpus=3, gpus=given)
    assert engine._environment(used) == {"NPROC": "3", "RAYON_NUM_THREADS": "3", **expected}


# --- with a real cluster --------------------------------------------------------------------------------

SWEEP = """
from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config

def get_config():
    common = default_config("vanilla")
    common.model.update(d_model=32, n_layers=1, n_heads=2, d_mlp=32)
    common.data.update(max_length=32, sources=("TEXT",), valid_sources=("TEXT",), cache_dir="CACHE")
    common.data.tokenizer.kind = "bytes"
    common.train.update(batch_tokens=1024, steps=1000, warmup_steps=1, precision="fp32")
    common.eval.update(max_tokens=512, every=0)
    common.checkpoint.every = 50
    contenders = {"vanilla": {"model.base": "vanilla"}, "wide": {"model.base": "vanilla", "model.d_mlp": 48}}
    return sweep_config(common, contenders, seeds=(1, 2))
"""


@pytest.fixture
def nodes(monkeypatch):
    with two_nodes(monkeypatch) as found:
        yield found


@pytest.fixture
def start(default_signals, tmp_path):
    """Starts the sweep with flags, in the workdir tmp_path/NAME."""
    text = SWEEP.replace("TEXT", str(write_text(tmp_path / "text.txt"))).replace("CACHE", str(tmp_path / "cache"))
    (tmp_path / "four.py").write_text(text)
    started = []

    def run(name, *flags):
        command = [sys.executable, "-m", "psann_jax", "sweep", f"--config={tmp_path / 'four.py'}"]
        paths = f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}"
        started.append(
            subprocess.Popen(
                [*command, f"--workdir={tmp_path / name}", *flags],
                env={**environment(), "PYTHONPATH": paths},
                cwd=TESTS.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def steps(folder):
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


def wait_for_two(out, process):
    """Waits until two runs have a checkpoint, and returns their folders."""
    while True:
        assert process.poll() is None, process.communicate()
        folders = [path.parent for path in (out / "runs").glob("*/metrics.jsonl")]
        found = [folder for folder in folders if max(steps(folder), default=0) > 60]
        if len(found) == 2:
            return found
        time.sleep(0.05)


def results(out):
    rows = json.loads((out / "summary.json").read_text())["results"]
    return {row["contender"] + str(row["seed"]): (row["val_loss"], row["train_tokens"]) for row in rows}


def n_starts(folder):
    return (folder / "log.txt").read_text().count(" psann_jax.main --config=")


@pytest.mark.slow
def test_a_killed_node_loses_nothing(nodes, start, tmp_path):
    out = tmp_path / "ray"
    process = start("ray", "--engine=ray", f"--address={nodes.address}")
    interrupted = wait_for_two(out, process)
    kill_node(nodes, nodes.two[0], lambda process: "psann_jax.main" in process.cmdline())
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    folders = sorted((out / "runs").iterdir())
    assert sorted(map(n_starts, folders)) == [1, 1, 1, 2], "one run was interrupted, and none is repeated"
    (again,) = [folder for folder in folders if n_starts(folder) == 2]
    assert again in interrupted
    text = (again / "log.txt").read_text()
    assert int(re.search(r"resumed +at step (\d+)", text)[1]) % 50 == 0, "from a regular checkpoint"
    for folder in folders:
        assert steps(folder) == sorted(set(steps(folder)))
    local = start("local", "--jobs=2")
    _, errors = local.communicate(timeout=600)
    assert local.returncode == 0, errors
    assert results(out) == results(tmp_path / "local")
    assert len(results(out)) == 4
    assert not (out / ".ray.tmp").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_runs_of_all_nodes(nodes, start, tmp_path, number, code):
    out, flags = tmp_path / "ray", ("--engine=ray", f"--address={nodes.address}")
    process = start("ray", *flags)
    running = wait_for_two(out, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "received: waiting for all runs to save their state" in errors
    for folder in running:
        assert "state saved; run the same command again" in (folder / "log.txt").read_text()
    assert len(list((out / "runs").iterdir())) == 2, "the others have not begun"
    process = start("ray", "--jobs=2", "--config.train.log_every=10")
    assert "resumed " not in (running[0] / "log.txt").read_text()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert all("resumed " in (folder / "log.txt").read_text() for folder in running)
    assert sorted(map(n_starts, (out / "runs").iterdir())) == [1, 1, 2, 2]


@pytest.mark.slow
def test_jobs_that_wait_for_a_node_can_be_stopped(nodes, start, tmp_path):
    process = start("ray", "--engine=ray", f"--address={nodes.address}", "--cpus_per_run=7")
    line = next(line for line in process.stdout if line.startswith("Ray: "))
    assert line.strip() == (
        "Ray: 3 nodes with 2 CPUs and 0 GPUs; each run uses 7 CPUs and 0 GPUs; no node has that many, so the runs wait "
        "for one"
    )
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed, or does not exist for this Python")
    engine = RayEngine(tmp_path, "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^--address: no Ray cluster can be used at 127\.0\.0\.1:1: .*refused"):
        engine.run({"a": functools.partial(print)}, NoWatch())
