"""Stop signals in one process and in several."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import warnings

import pytest

from psann_jax.train.preemption import StoppedError, StopSignals
from tests.support.processes import environment

pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_signal_sets_a_flag_and_is_reported_once(name, capfd):
    with StopSignals() as stop:
        stop.waiting_for = "the compilation"
        assert not stop.should_stop(1)
        assert stop.received is None
        signal.raise_signal(getattr(signal, name))
        assert stop.should_stop(2)
        assert stop.should_stop(3)
        assert stop.received == name
        if name != "SIGINT":
            signal.raise_signal(getattr(signal, name))
    again = "; press Ctrl-C again to end without saving" if name == "SIGINT" else ""
    line = f"{name} received: waiting for the compilation, then saving the state{again}"
    assert capfd.readouterr().err.split("\n") == ["", line, ""]


BUSY = """
import ctypes, signal, sys
from psann_jax.train.preemption import StoppedError, StopSignals
with StopSignals() as stop:
    stop.waiting_for = "the compilation"
    print("busy", flush=True)
    sleep = ctypes.CDLL(None).sleep  # as a compilation: Python runs no handler until it returns
    left = int(sys.argv[1])
    while left:
        left = sleep(left)
"""


def test_a_signal_is_reported_at_once_while_the_main_thread_is_busy():
    command = [sys.executable, "-c", BUSY, "600"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        try:
            assert p.stdout.readline() == "busy\n"
            p.send_signal(signal.SIGTERM)
            assert p.stderr.readline() == "\n"
            assert p.stderr.readline().startswith("SIGTERM received: waiting for the compilation")
            assert p.poll() is None
        finally:
            p.kill()


def test_sighup_stays_ignored_with_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.should_stop(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_does_not_end_the_run(monkeypatch):
    def write(*_):
        raise OSError(5, "Input/output error")

    with StopSignals() as stop, monkeypatch.context() as patch:
        patch.setattr("psann_jax.train.preemption.os.write", write)
        signal.raise_signal(signal.SIGHUP)
        assert stop.should_stop(1)
        stop.__exit__()


def test_the_second_ctrl_c_interrupts():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.should_stop(1)


def test_a_signal_ends_a_wait_at_once():
    with StopSignals() as stop:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StoppedError), stop.at_once():
            queue.Queue().get()
        assert stop.received == "SIGTERM"
        with pytest.raises(StoppedError), stop.at_once():  # the signal came before the wait
            queue.Queue().get()
        os.kill(os.getpid(), signal.SIGTERM)  # outside, it only sets the flag


def test_the_previous_handlers_are_restored():
    watched = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(s) for s in watched]
    wakeup = signal.set_wakeup_fd(-1)
    stop = StopSignals()
    with contextlib.suppress(ZeroDivisionError), stop:
        assert not any(signal.getsignal(s) in before for s in watched)
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in watched] == before
    assert signal.set_wakeup_fd(wakeup) == -1


def test_each_context_starts_without_a_signal():
    with StopSignals() as first:
        signal.raise_signal(signal.SIGTERM)
    with StopSignals() as second:
        assert not second.should_stop(1)
    assert first.should_stop(1)


def test_in_another_thread_nothing_is_installed_with_a_warning():
    result = {}

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with StopSignals() as stop:
                result["handler"] = signal.getsignal(signal.SIGTERM)
                result["stop"] = stop.should_stop(1)
        result["warnings"] = [str(w.message) for w in caught]

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result["handler"] == before
    assert result["stop"] is False
    assert "not in the main thread" in result["warnings"][0]


WORKER = """
import os, signal, sys, time
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from psann_jax.train.preemption import StoppedError, StopSignals
with StopSignals() as stop:
    for step in range(1, 2000):
        time.sleep(0.01 if sys.argv[2] == "0" else 0.013)
        if sys.argv[2] == "1" and step == 20:
            signal.raise_signal(getattr(signal, sys.argv[3]))
        if stop.should_stop(step):
            break
print("stopped after", step, "signal", stop.received)
"""


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow), pytest.param("SIGHUP", marks=pytest.mark.slow)]
)
def test_processes_stop_after_the_same_step(name, free_port):
    """Only one of two processes, which run at different speeds, gets the signal."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(free_port), str(i), name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(2)
    ]
    lines = [w.communicate(timeout=120)[0].split() for w in workers]
    assert [w.returncode for w in workers] == [0, 0]
    steps = [int(words[2]) for words in lines]
    assert steps[0] == steps[1]
    assert 20 < steps[0] < 1999


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
