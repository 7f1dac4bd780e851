"""A measurement in a process of its own, which alone uses the device.

So a check that is killed, or whose library aborts, ends alone; the peak memory of a measurement is its own; and no
process keeps from the next one memory of the device or, as on a TPU, the device itself.
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

_LONGEST_S = 3600  # a measurement that hangs, in a collective say, is ended


class ChildError(Exception):
    """A measurement has raised an exception. The message is its type and first line; `details` the stack trace."""

    def __init__(self, reason: str, details: str):
        super().__init__(reason)
        self.details = details


@dataclass(frozen=True)
class _Done:
    """What a `psann_jax.bench.workers.Worker` hands to its parent."""

    facts: dict[str, Any]


def in_child(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a function of a module, called in a process of its own; arguments and result are pickled.

    Raises:
      ChildError: it has raised an exception.
      UserError: its process was killed.
    """
    with Worker(function.__name__, __name__, function, args, kwargs) as worker:
        facts = worker.facts
    if "reason" in facts:
        raise ChildError(facts["reason"], facts["details"])
    result: R = facts["result"]
    return result


def for_each(function: Callable[[Any], R], arguments: dict[str, Any]) -> dict[str, R]:
    """The results of several measurements in one process, by name."""
    return {name: function(argument) for name, argument in arguments.items()}


def make(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Done:
    """In the child: calls the function."""
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    try:
        return _Done({"result": function(*args, **kwargs)})
    except Exception as error:
        reason = (str(error).strip() or "no message").split("\n")[0]
        return _Done({"reason": f"{type(error).__name__}: {reason}", "details": traceback.format_exc()})


def force_cpu_devices(n: int) -> None:
    """In the child, before any use of a device: divides the CPU into so many."""
    import jax

    jax.config.update("jax_num_cpu_devices", n)


def make_deterministic() -> None:
    """In the child, before any use of a device: forbids a GPU to add in an order that changes from run to run."""
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
