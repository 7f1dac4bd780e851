"""Multi-process runs: they resume on other numbers of processes and devices, and no dead process makes them hang."""

import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import psutil
import pytest

from psann_jax.runs.restore import load_run
from psann_jax.train.evaluation import WindowLosses
from psann_jax.train.metrics import read_metrics
from tests.support.bucket import fetch, s3_bucket
from tests.support.processes import run_script, start_main
from tests.support.tiny import write_text

WHOLE, STOPPED_AT = -1, 3


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return {(row["kind"], row["step"]): row["loss"] for row in rows}


def train(directory, workdir, stop, processes, devices, *options):
    """Trains the tiny model, with its parameters split over two devices if there are several."""
    mesh = ["fsdp=2", *options] if processes * devices > 1 else []
    run_script("multi_device/resume.py", directory, workdir, stop, *mesh, processes=processes, devices=devices)


def assert_same_parts(workdir, other):
    """The losses by position and source of two runs are equal."""
    found, expected = WindowLosses.read(workdir).parts, WindowLosses.read(other).parts
    assert found.keys() == expected.keys() == {"position", "source"}
    for kind, parts in expected.items():
        assert found[kind].names == parts.names
        np.testing.assert_array_equal(found[kind].weight_WxP, parts.weight_WxP)
        np.testing.assert_allclose(found[kind].nll_WxP, parts.nll_WxP, rtol=2e-5)


@pytest.mark.parametrize("options", [(), pytest.param(("scattered",), marks=pytest.mark.slow)])
def test_two_processes_train_like_one(tmp_path, options):
    train(tmp_path, tmp_path / "whole", WHOLE, 1, 1)
    train(tmp_path, tmp_path / "moved", STOPPED_AT, 2, 2, *options)
    train(tmp_path, tmp_path / "moved", WHOLE, 1, 1)
    got, want = losses(tmp_path / "moved"), losses(tmp_path / "whole")
    assert got.keys() == want.keys()
    for at, loss in want.items():
        np.testing.assert_allclose(got[at], loss, rtol=2e-5, err_msg=str(at))


@pytest.mark.slow
def test_windows_are_divided_over_processes(tmp_path):
    train(tmp_path, tmp_path / "one", WHOLE, 1, 1)
    run_script("multi_device/resume.py", tmp_path, tmp_path / "two", WHOLE, "context=8", processes=2, devices=4)
    got, want = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert got.keys() == want.keys()
    for at, loss in want.items():
        np.testing.assert_allclose(got[at], loss, rtol=2e-5, err_msg=str(at))


@pytest.mark.slow
def test_processes_without_a_common_disk_use_a_bucket(tmp_path):
    """Each has a copy of its own; process 0 gathers and saves the state, which is divided over the processes."""
    train(tmp_path, tmp_path / "whole", WHOLE, 2, 2)
    with s3_bucket() as url:
        train(tmp_path, f"{url}/run", STOPPED_AT, 2, 2)
        train(tmp_path, f"{url}/run", WHOLE, 2, 2)
        fetch(f"{url}/run", tmp_path / "fetched")
        found = load_run(f"{url}/run").params
    assert losses(tmp_path / "fetched") == losses(tmp_path / "whole")
    assert_same_parts(tmp_path / "fetched", tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, found, load_run(tmp_path / "whole").params)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "error"), [("stop", "no error"), ("fail", "of the callback")])
def test_a_callback_of_the_first_process_ends_all(tmp_path, action, error):
    run_script("multi_device/callbacks.py", tmp_path, tmp_path / "run", action, processes=2)
    first, second = ((tmp_path / "run" / f"end_{i}").read_text().split(maxsplit=3) for i in (0, 1))
    assert [first[0], *first[2:]] == ["0", "True", f"{error}\n"]
    assert second == ["1", first[1], "True", "no error\n"]
    assert int(first[1]) >= 3
    assert (tmp_path / "run" / "checkpoints" / f"step_{first[1]}").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with a complete and a stopped run, both of 4 processes with 2 devices each."""
    directory = tmp_path_factory.mktemp("several")
    train(directory, directory / "whole", WHOLE, 4, 2)
    train(directory, directory / "stopped", STOPPED_AT, 4, 2)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(4, 2), (1, 8), (2, 2), (1, 1)])
def test_a_run_of_4_times_2_resumes_on_other_numbers(runs, processes, devices):
    workdir = runs / f"{processes}x{devices}"
    shutil.copytree(runs / "stopped", workdir)
    train(runs, workdir, WHOLE, processes, devices)
    got, want = losses(workdir), losses(runs / "whole")
    assert max(step for kind, step in losses(runs / "stopped") if kind == "train") == STOPPED_AT
    assert got.keys() == want.keys()
    assert_same_parts(workdir, runs / "whole")
    if (processes, devices) == (4, 2):
        assert got == want
    for at, loss in want.items():
        np.testing.assert_allclose(got[at], loss, rtol=2e-5, err_msg=str(at))


CONFIG = """
from pathlib import Path
from psann_jax.config.io import default_config

HERE = Path(__file__).parent

def get_config():
    config = default_config("transformer")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=(str(HERE / "text.txt"),), max_length=32, cache_dir=str(HERE / "cache"))
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=400, batch_tokens=256, precision="fp32", log_every=1)
    config.checkpoint.every = 20
    return config
"""


@pytest.fixture
def flags(tmp_path):
    write_text(tmp_path / "text.txt", n_lines=400)
    (tmp_path / "config.py").write_text(CONFIG)
    return [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]


def reached(workdir, step, process):
    """Waits until the run has recorded a step."""
    while not any(row["kind"] == "train" and row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def member(launcher, number):
    """Returns the process with that index."""
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "psann_jax.main" in child.cmdline() and child.environ().get("JAX_PROCESS_ID") == str(number):
            return child
    raise AssertionError(f"no process {number}")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_same_command_resumes(flags, tmp_path):
    workdir = tmp_path / "run"
    launcher = start_main(*flags, processes=4)
    reached(workdir, 30, launcher)
    member(launcher, 2).kill()
    began = time.monotonic()
    _, shown = launcher.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "process 2 of 4 ended with code 137" in shown
    # Each survivor must notice by itself, because other launchers do not tell it. JAX's message depends on whether the
    # process was working or already ending.
    for survivor in (1, 3):
        working = re.search(rf"^\[{survivor}\] 2$", shown, re.MULTILINE) and "unhealthy (stopped sending heart" in shown
        ending = re.search(rf"^\[{survivor}\] .*Task 2 heartbeat timeout", shown, re.MULTILINE)
        assert working or ending, shown[-4000:]

    launcher = start_main(*flags, processes=4)
    reached(workdir, 60, launcher)
    os.kill(launcher.pid, signal.SIGTERM)
    out, shown = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, shown
    assert "resumed" in out + shown
    assert "run the same command again to resume" in out + shown
    last = read_metrics(workdir / "metrics.jsonl")[-1]["step"]
    assert (workdir / "checkpoints" / f"step_{last}").is_dir()

    launcher = start_main(*flags, "--config.train.steps=100", processes=1)
    _, shown = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, shown
    rows = [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, max(100, last) + 1))
