"""The processes of one run: how they find one another, and how they agree."""

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

# Three variables that launch/local.sh and launch/jobset.yaml set; JAX itself reads the first alone.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# A process that has not been heard of for so long is taken for dead, and the others are ended.
_HEARTBEAT_TIMEOUT_S = 20
_SHUTDOWN_TIMEOUT_S = 30
_WELCOME = "welcome"
_LONGEST = 2000  # bytes of a message


def join(timeout_s: int) -> None:
    """Joins the other processes of the run, if it was started as several. Call it before any other use of JAX.

    `launch/` has scripts that start several: on one machine, by SLURM, in Kubernetes and on TPU hosts. What they set in
    the environment is found here, by JAX where it knows the cluster.

    Args:
      timeout_s: seconds to wait for the others.

    Raises:
      UserError: the environment is contradictory, or the others did not come in time.
    """
    arguments = _from_environment(os.environ)
    if arguments is None:
        return
    # When another process dies, JAX ends this one and says who it was; the stacks of all threads would bury that.
    faulthandler.disable()
    if arguments:
        _call_the_roll(**arguments, timeout_s=timeout_s)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"the processes of the run could not be joined in {timeout_s} s: {reason}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None where there is one process only."""
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
    # JAX knows these clusters by itself. One task is no cluster: an interactive shell, say.
    tasks = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    in_step = "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    if in_step and any(n.isdigit() and int(n) > 1 for n in tasks):
        return {}
    on_tpu = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0")) and find_spec("libtpu") is not None
    return {} if on_tpu else None


def _number(environment: Mapping[str, str], name: str) -> int:
    require(environment[name].isdigit(), name, f"is {environment[name]!r}, must be a whole number")
    return int(environment[name])


def _call_the_roll(coordinator_address: str, num_processes: int, process_id: int, timeout_s: int) -> None:
    """Returns when all processes have found one another and agree on their number.

    JAX would not notice another number, and ends a process that waits in vain with a stack trace.
    """
    host, _, port = coordinator_address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    if process_id == 0:
        _answer(int(port), num_processes, deadline, timeout_s)
        return
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=max(deadline - time.monotonic(), 1)) as connection:
                connection.sendall(b"%d %d\n" % (process_id, num_processes))
                # Process 0 gives up at the same moment, and says for whom it has waited.
                connection.settimeout(max(deadline - time.monotonic(), 0) + 5)
                verdict = connection.makefile().readline().strip()
            if verdict:
                break
            reason = "it ended"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise UserError(
                f"{ADDRESS}: {coordinator_address} did not answer in {timeout_s} s ({reason}); process 0 must run there"
            )
        time.sleep(0.2)
    if verdict != _WELCOME:
        raise UserError(verdict)


def _answer(port: int, count: int, deadline: float, timeout_s: int) -> None:
    """Process 0's part: hears all others, then tells each of them whether the run can begin."""
    heard: set[int] = set()
    callers: list[socket.socket] = []
    mistake = ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise UserError(f"{ADDRESS}: port {port} cannot be opened: {error.strerror}") from error
        while len(heard) < count - 1 and not mistake:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.settimeout(5)
                index, said = map(int, connection.makefile().readline().split())
            except TimeoutError:
                missing = ", ".join(map(str, sorted(set(range(1, count)) - heard)))
                mistake = f"{COUNT}: is {count}, but process {missing} did not come in {timeout_s} s"
                break
            except (OSError, ValueError):
                continue  # somebody else knocked
            if said != count:
                mistake = f"{COUNT}: is {count} in process 0, but {said} in process {index}"
            elif index in heard:
                mistake = f"{INDEX}: is {index} in two processes"
            heard.add(index)
            callers.append(connection)
        for connection in callers:
            with contextlib.suppress(OSError):
                connection.sendall((mistake or _WELCOME).encode() + b"\n")
    if mistake:
        raise UserError(mistake)


def from_leader(content: Any) -> Any:
    """What process 0 has, in every process: the others may have another disk, or see later what 0 has written.

    Args:
      content: JSON-like; ignored but in process 0.
    """
    if jax.process_count() == 1:
        return content
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(encoded.size)))
    encoded = multihost_utils.broadcast_one_to_all(np.resize(encoded, size))
    return json.loads(np.asarray(encoded, np.uint8).tobytes())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is done within either succeeds in all processes or ends all of them. No collectives within.

    Raises:
      UserError: in process 0; with the message of the first process that had one.
      SystemExit: of code 2, in the others, so that one message is shown.
    """
    if jax.process_count() == 1:
        yield
        return
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    text = message.encode()[:_LONGEST]
    messages = multihost_utils.process_allgather(np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8))
    for index, row in enumerate(np.asarray(messages, np.uint8)):
        found = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if found and jax.process_index() != 0:
            raise SystemExit(2)
        if found:
            raise UserError(found if index == 0 else f"process {index}: {found}")
