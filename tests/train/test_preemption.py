"""Stop signals in one process and in several."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings

import pytest

from psann_jax.train.preemption import StopSignals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_only_sets_a_flag(name, capfd):
    with StopSignals() as stop:
        assert not stop.should_stop(1)
        assert stop.received is None
        signal.raise_signal(getattr(signal, name))
        assert stop.should_stop(2)
        assert stop.should_stop(3)
        assert stop.received == name
    assert ("Ctrl-C again" in capfd.readouterr().err) == (name == "SIGINT")


def test_the_second_ctrl_c_interrupts():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.should_stop(1)


def test_the_previous_handlers_are_restored():
    watched = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(s) for s in watched]
    stop = StopSignals()
    with contextlib.suppress(ZeroDivisionError), stop:
        assert not any(signal.getsignal(s) in before for s in watched)
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in watched] == before


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
from psann_jax.train.preemption import StopSignals
with StopSignals() as stop:
    for step in range(1, 2000):
        time.sleep(0.01 if sys.argv[2] == "0" else 0.013)
        if sys.argv[2] == "1" and step == 20:
            signal.raise_signal(getattr(signal, sys.argv[3]))
        if stop.should_stop(step):
            break
print("stopped after", step, "signal", stop.received)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
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
