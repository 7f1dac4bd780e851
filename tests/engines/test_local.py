"""Jobs on this machine: their order, their processes, and how signals and errors end them."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from psann_jax.engines import local
from psann_jax.engines.local import LocalEngine
from psann_jax.engines.place import STOPPED, Place
from tests.support.processes import TESTS, environment

# A child that says when it has started, and saves when it is asked to.
CHILD = """
import os, signal, sys, time
from pathlib import Path

def save(*_):
    Path(sys.argv[1], "saved").write_text("")
    print("was asked", file=sys.stderr)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "started").write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))) + os.environ.get("OWN", ""))
if len(sys.argv) > 2:
    print("text")
    sys.stderr.buffer.write(b"a warning\\nerror: no \\xff network\\n\\n")
    sys.exit(int(sys.argv[2]))
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def child(monkeypatch, tmp_path):
    """Lets processes import the module `child`."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{TESTS.parent}")


class Record:
    """A `Watch` that keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def started(self, key):
        self.calls.append(("started", key))

    def refresh(self):
        pass

    def ended(self, key, error):
        self.calls.append(("ended", key, error))


def wait_for(*paths):
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} are missing"
        time.sleep(0.02)


# --- child processes ------------------------------------------------------------------------------------


def test_output_that_is_not_shown_is_appended_to_a_log(tmp_path, capfd):
    place = Place(shows_output=False, environment={"OWN": " own"}, cores=(min(os.sched_getaffinity(0)),))
    errors = []
    thread = threading.Thread(
        target=lambda: errors.extend(place.run_module(["child", str(tmp_path), code], tmp_path) for code in "30")
    )
    thread.start()  # the cores are those of the thread that starts the process
    thread.join()
    assert errors == ["no \\xff network", None]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("text\n") == log.count("a warning\n") == 2
    assert log.count(f" child {tmp_path}") == 2
    assert (tmp_path / "started").read_text() == f"{place.cores[0]} own"
    assert capfd.readouterr() == ("", "")


def test_output_of_one_job_is_shown(tmp_path, capfd):
    assert Place().run_module(["child", str(tmp_path), "3"], tmp_path) == "no \\xff network"
    shown = capfd.readouterr()
    assert shown.out == "text\n"
    assert shown.err.startswith("a warning\nerror: no ")
    assert not (tmp_path / "log.txt").exists()


def test_a_process_without_a_message_is_known_by_its_code(tmp_path):
    assert Place().run_module(["no_such_module_"], tmp_path).endswith("No module named no_such_module_")
    (tmp_path / "quiet.py").write_text("raise SystemExit(7)")
    assert Place().run_module(["quiet"], tmp_path) == "exit code 7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SIGKILL", "it was ended by SIGKILL, as by the system when memory runs out"),
        ("SIGABRT", "it was ended by SIGABRT"),
    ],
)
def test_a_process_that_a_signal_ends_is_not_known_by_its_progress(tmp_path, name, message):
    source = "import os, signal, sys\nprint('step 3/9  loss 1.0', file=sys.stderr, flush=True)\n"
    (tmp_path / "ended.py").write_text(f"{source}os.kill(os.getpid(), signal.{name})\n")
    assert Place(shows_output=False).run_module(["ended"], tmp_path) == message


def test_a_job_that_is_to_end_starts_nothing(tmp_path):
    assert Place(stopping=lambda: True).run_module(["child", str(tmp_path)], tmp_path) == STOPPED
    assert not (tmp_path / "started").exists()


def test_a_process_is_asked_to_save_or_killed(tmp_path):
    started = (tmp_path / "started").exists
    assert Place(stopping=started, shows_output=False).run_module(["child", str(tmp_path)], tmp_path) is None
    assert (tmp_path / "saved").exists()
    assert "was asked" in (tmp_path / "log.txt").read_text()
    (tmp_path / "saved").unlink()
    (tmp_path / "started").unlink()
    assert Place(killing=started).run_module(["child", str(tmp_path)], tmp_path) == "it was ended by SIGKILL"
    assert not (tmp_path / "saved").exists()


# --- jobs -----------------------------------------------------------------------------------------------


def test_jobs_alone_run_one_after_the_other():
    record = Record()

    def job(i, place):
        assert (place.shows_output, place.shares, place.cores) == (True, False, ())
        return i * i

    LocalEngine().run({i: functools.partial(job, i) for i in range(3)}, record)
    assert record.calls == [call for i in range(3) for call in (("started", i), ("ended", i, i * i))]


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(local, "find_devices", lambda: ("cpu", 1))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: None)  # the machine may have fewer


def test_as_many_jobs_as_asked_for_run_at_once(four_cores):
    """Three of them wait for each other; the others get the places of those that have ended."""
    barrier, record, places = threading.Barrier(3, timeout=30), Record(), []

    def job(i, place):
        places.append(place.cores)
        barrier.wait()
        return i

    assert LocalEngine(3).at_once(6)
    LocalEngine(3).run({i: functools.partial(job, i) for i in range(6)}, record)
    assert [call[1] for call in record.calls if call[0] == "started"] == list(range(6))
    assert sorted(call[1:] for call in record.calls if call[0] == "ended") == [(i, i) for i in range(6)]
    assert sorted(places[:3]) == sorted(places[3:]) == [(0,), (1,), (2, 3)]


def test_a_single_job_has_the_whole_machine(four_cores):
    record = Record()
    assert not LocalEngine(3).at_once(1)
    LocalEngine(3).run({"only": lambda place: place}, record)
    place = record.calls[1][2]
    assert (place.shows_output, place.cores, place.shares) == (True, (), False)


def test_an_error_ends_the_other_jobs_after_they_have_saved(four_cores, tmp_path):
    def failing(place):
        wait_for(tmp_path / "started")
        raise OSError("no space")

    jobs = {"a": failing, "b": lambda place: place.run_module(["child", str(tmp_path)], tmp_path), "c": failing}
    record = Record()
    with pytest.raises(OSError, match="no space"):
        LocalEngine(2).run(jobs, record)
    assert (tmp_path / "saved").exists()
    assert record.calls == [("started", "a"), ("started", "b")]


# --- signals, in a process of its own -------------------------------------------------------------------

PARENT = """
import functools, sys
from pathlib import Path
from psann_jax.cli import program
from psann_jax.engines import local
from psann_jax.engines.engine import NoWatch

local.find_devices = lambda: ("cpu", 1)

def job(folder, place):
    print(place.run_module(["child", str(folder)], folder))

def main(argv):
    folders = [Path(argv[1], name) for name in argv[2:]]
    local.LocalEngine(int(argv[0])).run({f: functools.partial(job, f) for f in folders}, NoWatch())

program.dispatch = main
sys.exit(program.exit_code(sys.argv[1:]))
"""


@pytest.fixture
def parent(default_signals, tmp_path):
    """Starts a process that runs children in folders of tmp_path, and waits until the first ones have started."""
    started = []

    def start(jobs, names="ab"):
        for name in names:
            (tmp_path / name).mkdir()
        command = [sys.executable, "-c", PARENT, str(jobs), str(tmp_path), *names]
        env = {**environment(), "PYTHONPATH": os.environ["PYTHONPATH"]}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        wait_for(*(tmp_path / name / "started" for name in names[:jobs]))
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"),
    [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGHUP", 129)],
    ids=lambda value: str(value),
)
def test_a_signal_asks_all_jobs_to_save(parent, tmp_path, number, code):
    process = parent(2, "abc")
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    again = "; press Ctrl-C again to end at once" if number == "SIGINT" else ""
    assert f"{number} received: waiting for all runs to save their state{again}\n" in errors
    assert [(tmp_path / name / "saved").exists() for name in "abc"] == [True, True, False]
    assert not (tmp_path / "c" / "started").exists()


def test_a_signal_also_reaches_a_single_job(parent, tmp_path):
    process = parent(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "was asked\n")
    assert (tmp_path / "a" / "saved").exists()


def test_a_second_ctrl_c_ends_jobs_that_do_not_save(parent, tmp_path):
    (tmp_path / "child.py").write_text(CHILD.replace("sys.exit(0)", "time.sleep(100)"))
    process = parent(2)
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path / "a" / "saved", tmp_path / "b" / "saved")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n")


def test_children_of_a_killed_process_save(parent, tmp_path):
    process = parent(2)
    process.kill()
    wait_for(tmp_path / "a" / "saved", tmp_path / "b" / "saved")
