"""Multi-process runs: joining the processes, sharing decisions and errors between them."""

import contextlib
import faulthandler
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from psann_jax.config import require
from psann_jax.utils.errors import UserError

# Set by launch/local.sh and launch/jobset.yaml. JAX itself reads only the first.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# A process without a heartbeat for this long counts as dead, and JAX ends the others.
_HEARTBEAT_TIMEOUT_S = 20
_SHUTDOWN_TIMEOUT_S = 300  # process 0 may have to copy a checkpoint to a bucket first
_WELCOME = "welcome"
_MAX_MESSAGE_BYTES = 2000


def join(timeout_s: int) -> None:
    """Connects the processes of a multi-process run; does nothing for a single process.

    Call it before any other use of JAX. The scripts in `launch/` start several processes on one machine, with SLURM, in
    Kubernetes and on TPU hosts. They describe the run in environment variables, which are read here or, for clusters
    that JAX detects, by JAX.

    Args:
      timeout_s: seconds to wait for the other processes.

    Raises:
      UserError: the environment variables contradict each other, or a process did not connect in time.
    """
    arguments = _from_environment(os.environ)
    if arguments is None:
        return
    # If another process dies, JAX ends this one with a message that names it; thread stacks would bury that message.
    faulthandler.disable()
    if arguments:
        _check_processes(**arguments, timeout_s=timeout_s)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"the processes of the run did not connect within {timeout_s} s: {reason}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`, {} if JAX detects the cluster, None for one process."""
    given = [name for name in (ADDRESS, COUNT, INDEX) if name in environment]
    if COUNT in given or INDEX in given:
        for name in (ADDRESS, COUNT, INDEX):
            require(name in given, name, f"is not set, but {given[-1]} is")
        count, index = _number(environment, COUNT), _number(environment, INDEX)
        require(count >= 1, COUNT, f"is {count}, must be at least 1")
        require(index < count, INDEX, f"is {index}, must be below {COUNT}={count}")
        address = environment[ADDRESS]
        host, _, port = address.rpartition(":")
        require(bool(host) and port.isdigit(), ADDRESS, f"is {address!r}, must be HOST:PORT")
        if count == 1:
            return None
        return {"coordinator_address": address, "num_processes": count, "process_id": index}
    # JAX detects these clusters. A single task is not one; it may be an interactive shell.
    tasks = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    in_step = "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    if in_step and any(n.isdigit() and int(n) > 1 for n in tasks):
        return {}
    on_tpu = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0")) and find_spec("libtpu") is not None
    return {} if on_tpu else None


def _number(environment: Mapping[str, str], name: str) -> int:
    require(environment[name].isdigit(), name, f"is {environment[name]!r}, must be a whole number")
    return int(environment[name])


def _check_processes(coordinator_address: str, num_processes: int, process_id: int, timeout_s: int) -> None:
    """Waits until all processes have connected and agree on their number.

    JAX does not detect a wrong number of processes, and a process that waits in vain dies with a stack trace.
    """
    host, _, port = coordinator_address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    if process_id == 0:
        _serve_checks(int(port), num_processes, deadline, timeout_s)
        return
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=max(deadline - time.monotonic(), 1)) as connection:
                connection.sendall(b"%d %d\n" % (process_id, num_processes))
                # Process 0 gives up at the same time and then sends the names of the missing processes.
                connection.settimeout(max(deadline - time.monotonic(), 0) + 5)
                verdict = connection.makefile().readline().strip()
            if verdict:
                break
            reason = "connection closed"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise UserError(
                f"{ADDRESS}: {coordinator_address} did not answer in {timeout_s} s ({reason}); process 0 must run there"
            )
        time.sleep(0.2)
    if verdict != _WELCOME:
        raise UserError(verdict)


def _serve_checks(port: int, count: int, deadline: float, timeout_s: int) -> None:
    """Process 0's side: collects the numbers of all others, then sends each the verdict."""
    heard: set[int] = set()
    connections: list[socket.socket] = []
    problem = ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise UserError(f"{ADDRESS}: port {port} cannot be opened: {error.strerror}") from error
        while len(heard) < count - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(5)
                index, their_count = map(int, connection.makefile().readline().split())
            except TimeoutError:
                missing = ", ".join(map(str, sorted(set(range(1, count)) - heard)))
                problem = f"{COUNT}: is {count}, but process {missing} did not connect within {timeout_s} s"
                break
            except (OSError, ValueError):
                continue  # not a process of this run
            if their_count != count:
                problem = f"{COUNT}: is {count} in process 0, but {their_count} in process {index}"
            elif index in heard:
                problem = f"{INDEX}: is {index} in two processes"
            heard.add(index)
            connections.append(connection)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall((problem or _WELCOME).encode() + b"\n")
    if problem:
        raise UserError(problem)


def broadcast_from_leader(content: Any) -> Any:
    """Returns process 0's value in every process.

    Use it for what is read from files: other processes may have another disk, or see process 0's writes later.

    Args:
      content: a JSON-like value; only that of process 0 counts.
    """
    if jax.process_count() == 1:
        return content
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(encoded.size)))
    encoded = multihost_utils.broadcast_one_to_all(np.resize(encoded, size))
    return json.loads(np.asarray(encoded, np.uint8).tobytes())


def gather_from_all(content: Any) -> list[Any]:
    """Returns the values of all processes, in their order; all of them must call it.

    Args:
      content: a JSON-like value.
    """
    if jax.process_count() == 1:
        return [content]
    encoded = json.dumps(content).encode()
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(encoded)))))
    rows = multihost_utils.process_allgather(np.frombuffer(encoded.ljust(size), np.uint8))
    return [json.loads(row.tobytes()) for row in np.asarray(rows, np.uint8)]


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
    """If any process raises UserError inside this block, all of them exit. The block must contain no collectives.

    Raises:
      UserError: in process 0, with the message of the first process that raised one.
      SystemExit: with code 2, in the other processes, so that the message is shown once.
    """
    if jax.process_count() == 1:
        yield
        return
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    text = message.encode()[:_MAX_MESSAGE_BYTES]
    messages = multihost_utils.process_allgather(np.frombuffer(text.ljust(_MAX_MESSAGE_BYTES, b"\0"), np.uint8))
    for index, row in enumerate(np.asarray(messages, np.uint8)):
        found = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if found and jax.process_index() != 0:
            raise SystemExit(2)
        if found:
            raise UserError(found if index == 0 else f"process {index}: {found}")
