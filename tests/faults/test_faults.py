"""Fault injection into the real command: signals, NaN updates, clock jumps and unusual locales."""

import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest

from psann_jax.train.metrics import read_metrics
from psann_jax.utils.checksums import CHECKSUMS
from tests.support.experiment import Experiment, recorded_step, saved_steps, wait_for_step
from tests.support.processes import environment, start_main
from tests.support.tiny import write_text

pytestmark = pytest.mark.usefixtures("default_signals")

CONFIG = """
from pathlib import Path
from psann_jax.config.io import default_config

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
    """Flags for a run of a few seconds in tmp_path."""
    write_text(tmp_path / "text.txt", n_lines=1000)
    (tmp_path / "config.py").write_text(CONFIG)
    return [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_loses_nothing_and_the_same_command_finishes_the_run(flags, tmp_path, number, code):
    workdir = tmp_path / "run"
    if code > 0:
        flags.append(f"--stop_code={code}")
    process = start_main(*flags)
    wait_for_step(workdir, 120, process)
    process.send_signal(number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == code, shown
    assert not (workdir / "summary.json").exists()
    if code >= 0:
        assert f"stopped by {number.name}" in shown
        last = read_metrics(workdir / "metrics.jsonl")[-1]["step"]
        assert (workdir / "checkpoints" / f"step_{last}").is_dir()
    process = start_main(*flags)
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    rows = [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, 1501))
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 1500


@pytest.mark.slow
def test_closing_the_terminal_saves_the_state(flags, tmp_path):
    """The kernel sends SIGHUP, and from then on nothing can be written to the terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "psann_jax.main", *flags],
        env=environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    while not saved_steps(tmp_path / "run"):
        if select.select([master], [], [], 0.05)[0]:  # otherwise the process would wait for the terminal
            os.read(master, 1 << 16)
    os.close(master)
    assert process.wait(timeout=120) == 0
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert saved_steps(tmp_path / "run")[-1] == last < 1500


@pytest.mark.slow
def test_a_second_run_in_the_same_workdir_is_refused(flags, tmp_path):
    first = start_main(*flags)
    wait_for_step(tmp_path / "run", 1, first)
    second = start_main(*flags)
    _, shown = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert shown.strip().splitlines()[-1].endswith("another process is training in this workdir")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(tmp_path_factory.mktemp("experiment"))


# --- killed -------------------------------------------------------------------------------------------


def kill_once(experiment, workdir, rng, target, how):
    """Runs the command until it is killed at about the step `target`, and checks what is left.

    Args:
      experiment: the experiment to run.
      workdir: of the run.
      rng: draws the exact moment.
      target: a step.
      how: "start": during startup; "step": between or within steps; or a fault of faulty_main.py that kills. A fault
        that waits for a deletion gets no target, because the deleted checkpoint is an earlier one.
    """
    if how in ("start", "step"):
        target = max(target, recorded_step(workdir) + 1)  # earlier rows say nothing about this process
        process = experiment.start(workdir)
        if how == "start":
            time.sleep(rng.uniform(0.3, 2.5))
        else:
            wait_for_step(workdir, target + rng.randint(0, 4), process)
            time.sleep(rng.uniform(0, 0.03))
        process.kill()
    else:
        process = experiment.start(workdir, fault=how if how == "kill-in-deletion" else f"{how}={target}")
    _, shown = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, shown
    assert not (workdir / "summary.json").exists()
    saved = saved_steps(workdir)  # checks that all are intact
    if saved:
        json.loads((workdir / "checkpoints" / "index.json").read_text())
    if how == "kill-in-save":
        assert recorded_step(workdir) >= target
        assert recorded_step(workdir) not in saved
    if how == "kill-before-checksums":
        assert saved[-1] >= target
        assert not (workdir / "checkpoints" / f"step_{saved[-1]}" / CHECKSUMS).exists()


def kill_repeatedly(experiment, workdir, n_steps, how):
    """Kills a run once for each entry of `how`, lets it finish, and compares it with the uninterrupted one."""
    rng = random.Random(0)
    for i, moment in enumerate(how):
        kill_once(experiment, workdir, rng, (i + 1) * n_steps // (len(how) + 2), moment)
    experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)
    kept = {f"step_{step}" for step in saved_steps(workdir)}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"index.json", *kept}


@pytest.mark.parametrize(
    "how",
    [
        ["kill-in-save", "kill-in-deletion"],
        pytest.param(["step", "kill-before-checksums"], marks=pytest.mark.slow),
    ],
)
def test_two_kills_change_nothing(experiment, tmp_path, how):
    kill_repeatedly(experiment, tmp_path / "run", 60, how)


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(tmp_path):
    """At random moments, among them the first save and every kind of moment of saving and deleting."""
    experiment = Experiment(tmp_path, "--config.train.steps=1200", "--config.checkpoint.every=2")
    moments = (
        "step",
        "kill-in-save",
        "start",
        "kill-soon-after-save-began",
        "kill-before-checksums",
        "kill-in-deletion",
    )
    first = ["kill-in-save", "kill-soon-after-save-began", "start"] * 3
    random_moments = random.Random(1).choices(moments, weights=(3, 2, 4, 2, 4, 2), k=200 - len(first))
    kill_repeatedly(experiment, tmp_path / "run", 1200, first + random_moments)


# --- stopped by a signal ------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_in_compilation_evaluation_and_save(experiment, tmp_path):
    """One run is stopped four times; each time it resumes without losing a step."""
    workdir = tmp_path / "run"
    shown = experiment.run(workdir, fault="term-in-compilation")
    assert "stopped by SIGTERM at step 0, state saved; run the same command again to resume" in shown
    assert saved_steps(workdir) == [0]
    shown = experiment.run(workdir, fault="term-in-evaluation=20")
    assert "stopped by SIGTERM at step 20, state saved" in shown
    assert saved_steps(workdir)[-1] == 20
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "eval"] == [0]
    shown = experiment.run(workdir, fault="term-in-compilation")
    assert "stopped by SIGTERM at step 20, state saved" in shown
    assert saved_steps(workdir)[-1] == 20
    shown = experiment.run(workdir, fault="term-in-save=35")
    assert "stopped by SIGTERM at step 35, state saved" in shown
    assert saved_steps(workdir)[-1] == 35
    assert not (workdir / "summary.json").exists()
    experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)


@pytest.mark.slow
def test_sigterm_within_an_update(tmp_path):
    """The update is abandoned, the state before it saved, and the resumed run repeats the whole update."""
    experiment = Experiment(tmp_path, "--config.train.steps=8", "--config.train.grad_accum=4")
    workdir = tmp_path / "run"
    shown = experiment.run(workdir, fault="term-in-update=3")
    # On a busy machine the run is already saving when the thread reports the signal.
    assert re.search(
        r"SIGTERM received: waiting for the (current micro-batch|checkpoint), then saving the state", shown
    )
    assert "stopped by SIGTERM at step 3, state saved; run the same command again to resume" in shown
    assert saved_steps(workdir)[-1] == recorded_step(workdir) == 3
    experiment.finish(workdir)
    experiment.assert_uninterrupted(workdir)


# --- NaN, clock and locale ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_nan_update_is_skipped_and_counted(experiment, tmp_path):
    experiment.finish(tmp_path / "run", fault="nan-once=20")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["bad_steps"] for row in rows] == [float(row["step"] == 21) for row in rows]
    assert [row["skipped_steps"] for row in rows] == [float(row["step"] >= 21) for row in rows]
    before = [loss for loss in experiment.expected if loss[1] <= 20]
    assert losses_until(tmp_path / "run", 20) == before
    assert rows[-1]["loss"] == pytest.approx(experiment.expected[-2][2], rel=0.05)


@pytest.mark.slow
def test_many_nan_updates_in_a_row_end_the_run_with_its_state_saved(experiment, tmp_path):
    workdir, flag = tmp_path / "run", "--config.train.max_bad_steps=3"
    error = experiment.fails(workdir, flag, fault="nan-from=22")
    assert error == (
        "train.max_bad_steps: 3 updates in a row were not finite, the last at step 25; the state before them is saved "
        f"in {workdir / 'checkpoints'}; lower train.lr"
    )
    last = saved_steps(workdir)[-1]
    assert last >= 25
    assert losses_until(workdir, 22) == [loss for loss in experiment.expected if loss[1] <= 22]
    experiment.finish(workdir, flag)  # the saved parameters are those before the first NaN
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[-1]["step"] == 60
    assert rows[-1]["skipped_steps"] == last - 22
    assert rows[-1]["loss"] == pytest.approx(experiment.expected[-2][2], rel=0.1)


def losses_until(workdir, step):
    """Returns the losses up to a step, in the form of `Experiment.expected`."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row["kind"], row["step"], row["loss"], row.get("grad_norm")) for row in rows if row["step"] <= step]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "back"])
def test_a_jumping_clock_changes_nothing(experiment, tmp_path, direction):
    experiment.finish(tmp_path / "run", fault=f"clock-{direction}")
    experiment.assert_uninterrupted(tmp_path / "run")
    assert saved_steps(tmp_path / "run")[-1] == 60
    workdir = experiment.copy(tmp_path / "again")
    for step in saved_steps(workdir)[1:]:
        shutil.rmtree(workdir / "checkpoints" / f"step_{step}")
    assert "resumed" in experiment.finish(workdir, fault=f"clock-{direction}")
    experiment.assert_uninterrupted(workdir)


@pytest.mark.slow
def test_an_ascii_locale_changes_nothing(experiment, tmp_path):
    variables = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flag = f"--config.data.cache_dir={tmp_path / 'cache'}"  # a new cache, so that the text, which is not ASCII, is read
    experiment.finish(tmp_path / "run", flag, **variables)
    experiment.assert_uninterrupted(tmp_path / "run")
    error = experiment.fails(tmp_path / "größer", flag, **variables)
    assert "a name that is not ASCII cannot be used in this locale; set PYTHONUTF8=1" in error
    experiment.finish(tmp_path / "größer", flag, **{**variables, "PYTHONUTF8": "1"})
    experiment.assert_uninterrupted(tmp_path / "größer")


@pytest.mark.slow
def test_a_locale_with_decimal_commas_changes_nothing(experiment, tmp_path):
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("this machine cannot make a locale with decimal commas")
    german = {"LC_ALL": "de_DE.UTF-8", "LOCPATH": str(tmp_path)}
    experiment.finish(tmp_path / "run", fault="locale", **german)
    experiment.assert_uninterrupted(tmp_path / "run")
