"""Joining the processes of a run; `tests/multi_device` trains with several."""

import socket
import threading

import pytest

from psann_jax.config import ConfigError
from psann_jax.train import processes
from psann_jax.train.processes import _check_processes, _from_environment, broadcast_from_leader, join, raise_together
from psann_jax.utils.errors import UserError

LOCAL = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}


# --- the environment ----------------------------------------------------------------------------------


def test_the_variables_of_the_launch_scripts():
    expected = {"coordinator_address": "127.0.0.1:1234", "num_processes": 4, "process_id": 2}
    assert _from_environment(LOCAL) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**LOCAL, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {**SLURM, "SLURM_NTASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},  # in the script, not a step
    ],
)
def test_a_single_process_joins_nothing(environment):
    assert _from_environment(environment) is None


def test_slurm_is_left_to_jax(monkeypatch):
    """`join` calls JAX's own cluster detection, which reads SLURM's variables."""
    passed = {}
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **kwargs: passed.update(kwargs))
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    join(timeout_s=7)
    assert passed["initialization_timeout"] == 7
    assert "coordinator_address" not in passed, "left to JAX"
    from jax._src.clusters import SlurmCluster

    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_coordinator_address(None, None) == f"node001:{77 % 4096 + 61440}"
    assert (SlurmCluster.get_process_id(), SlurmCluster.get_process_count()) == (3, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID: is not set, but JAX_NUM_PROCESSES is"),
        ({"JAX_COORDINATOR_ADDRESS": None}, "JAX_COORDINATOR_ADDRESS: is not set"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES: is 'four', must be a whole number"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: is 0"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID: is 4, must be below JAX_NUM_PROCESSES=4"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS: is 'host', must be HOST:PORT"),
    ],
)
def test_contradictions_name_the_variable(changes, message):
    environment = {name: value for name, value in {**LOCAL, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=f"^{message}"):
        _from_environment(environment)


# --- checking that all processes are there ------------------------------------------------------------


def check(*given, timeout_s=5):
    """Runs the check at the same time for all given (number of processes, index); returns each one's error or None."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    errors = [None] * len(given)

    def run(i):
        try:
            _check_processes(f"127.0.0.1:{port}", *given[i], timeout_s)
        except UserError as error:
            errors[i] = str(error)

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_processes_that_agree_connect():
    assert check((3, 2), (3, 0), (3, 1)) == [None, None, None]


def test_counts_that_disagree_are_reported_in_all_processes():
    message = "JAX_NUM_PROCESSES: is 2 in process 0, but 3 in process 1"
    assert check((2, 0), (3, 1)) == [message, message]


def test_an_index_given_twice():
    assert set(check((3, 0), (3, 1), (3, 1))) == {"JAX_PROCESS_ID: is 1 in two processes"}


def test_a_missing_process_is_named():
    message = "JAX_NUM_PROCESSES: is 3, but process 2 did not connect within 1 s"
    assert check((3, 0), (3, 1), timeout_s=1) == [message, message]


def test_a_coordinator_that_does_not_answer():
    (error,) = check((2, 1), timeout_s=1)
    assert error.startswith("JAX_COORDINATOR_ADDRESS: 127.0.0.1:")
    assert "did not answer in 1 s (Connection refused)" in error


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server, pytest.raises(UserError, match="cannot be opened: Address already"):
        _check_processes(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)


# --- one process --------------------------------------------------------------------------------------


def test_a_single_process_exchanges_nothing():
    content = {"a": [1, None]}
    assert broadcast_from_leader(content) is content
    with pytest.raises(UserError, match="mine"), raise_together():
        raise UserError("mine")
