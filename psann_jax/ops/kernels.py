"""Which implementation of an operation a program uses, chosen by the devices that it is compiled for.

An operation with several implementations calls `choose` while it is traced, outside the functions of a custom
derivative, and passes the choice on as a static argument. The choice depends on the current mesh, never on the devices
of the process, so that programs can be compiled for devices that are not there.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

Kernels = Literal["auto", "plain"]


_selected: ContextVar[Kernels] = ContextVar("selected", default="auto")
_chosen: ContextVar[dict[str, set[str]] | None] = ContextVar("chosen", default=None)
_refused: set[str] = set()  # kernels that failed their check on the devices of this process


class Candidate(NamedTuple):
    """An implementation of an operation.

    Attributes:
      name: of the implementation, for example "cudnn".
      reason: why it cannot be used here; empty if it can.
      is_kernel: whether it is code for special devices, which model.kernels=plain turns off and which is compared with
        the reference before its first use.
    """

    name: str
    reason: str = ""
    is_kernel: bool = True


def platform() -> str:
    """Returns the platform of the current mesh, or of the default backend without one: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else str(name)


def device_kind() -> str:
    """Returns the kind of the current mesh's devices, or of the default backend's: "NVIDIA H100 80GB HBM3"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return str(jax.devices()[0].device_kind if device is None else device.device_kind)


def device_count() -> int:
    """Returns the number of devices of the current mesh, or of all processes without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


@contextlib.contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Context in which `choose` takes kernels for special devices ("auto") or not ("plain")."""
    token = _selected.set(kernels)
    try:
        yield
    finally:
        _selected.reset(token)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, set[str]]]:
    """Context that yields a dict: operation -> implementations that `choose` returned for it inside the context."""
    found: dict[str, set[str]] = {}
    token = _chosen.set(found)
    try:
        yield found
    finally:
        _chosen.reset(token)


def choose(operation: str, *candidates: Candidate) -> str:
    """Returns the name of the first candidate that can be used; the last one always can.

    A kernel is passed over inside `using("plain")`, and after `refuse("OPERATION.NAME")`.
    """
    plain = _selected.get() == "plain"

    def usable(candidate: Candidate) -> bool:
        if candidate.is_kernel and (plain or f"{operation}.{candidate.name}" in _refused):
            return False
        return not candidate.reason

    name = next((candidate.name for candidate in candidates if usable(candidate)), candidates[-1].name)
    found = _chosen.get()
    if found is not None:
        found.setdefault(operation, set()).add(name)
    return name


def refuse(kernel: str) -> None:
    """Makes `choose` pass over the kernel "OPERATION.NAME" in programs that this process traces from now on."""
    _refused.add(kernel)


@dataclass(frozen=True)
class Example:
    """A small problem on which a kernel is compared with the reference, values and gradients.

    Attributes:
      kernel: the implementation, a function of arrays that returns an array.
      reference: the function it must equal.
      inputs: returns the arguments of both for a random key; gradients are compared for those of a float type.
      tolerance: of the largest difference, as a fraction of the largest absolute value of the reference's array.
    """

    kernel: Callable[..., jax.Array]
    reference: Callable[..., jax.Array]
    inputs: Callable[[jax.Array], tuple[Any, ...]]
    tolerance: float


EXAMPLES: dict[str, Callable[[], Example]] = {}


def example(kernel: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Decorator that registers the function which makes the `Example` of the kernel "OPERATION.NAME"."""

    def register(make: Callable[[], Example]) -> Callable[[], Example]:
        EXAMPLES[kernel] = make
        return make

    return register
