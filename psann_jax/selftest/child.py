"""Runs a measurement in a child process, so that no other process uses the device.

A crash or kill then affects one check only, the peak memory is that of one measurement, and no process holds device
memory or, on a TPU, the device itself that the next measurement needs.
"""

import faulthandler
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from psann_jax.bench.workers import Worker

P = ParamSpec("P")
R = TypeVar("R")

_TIMEOUT_S = 3600  # for measurements that hang, for example in a collective


class ChildError(Exception):
    """Raised if a measurement raised an exception.

    The message has the exception's type and first line; `details` has the stack trace.
    """

    def __init__(self, reason: str, details: str):
        super().__init__(reason)
        self.details = details


@dataclass(frozen=True)
class _Done:
    """The contender that `psann_jax.bench.workers.Worker` expects; its facts are sent to the parent."""

    facts: dict[str, Any]


def in_child(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls a module-level function in a new process and returns its result; arguments and result are pickled.

    Raises:
      ChildError: The function raised an exception.
      UserError: The process was killed.
    """
    with Worker(function.__name__, __name__, function, args, kwargs) as worker:
        facts = worker.facts
    if "reason" in facts:
        raise ChildError(facts["reason"], facts["details"])
    result: R = facts["result"]
    return result


def for_each(function: Callable[[Any], R], arguments: dict[str, Any]) -> dict[str, R]:
    """Calls a function once per named argument and returns the results by name."""
    return {name: function(argument) for name, argument in arguments.items()}


def make(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Done:
    """Calls the function, in the child."""
    faulthandler.dump_traceback_later(_TIMEOUT_S, exit=True)
    try:
        return _Done({"result": function(*args, **kwargs)})
    except Exception as error:
        reason = (str(error).strip() or "no message").split("\n")[0]
        return _Done({"reason": f"{type(error).__name__}: {reason}", "details": traceback.format_exc()})


def force_cpu_devices(n: int) -> None:
    """Splits the CPU into n devices. Call it in the child, before any use of a device."""
    import jax

    jax.config.update("jax_num_cpu_devices", n)


def make_deterministic() -> None:
    """Makes GPU reductions use a fixed order. Call it in the child, before any use of a device."""
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
