"""Which implementation of an operation a program uses, chosen by the devices that it is compiled for.

An operation with several implementations calls `choose` while it is traced, outside the functions of a custom
derivative, and passes the choice on as a static argument. The choice depends on the current mesh, never on the devices
of the process, so that programs can be compiled for devices that are not there.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Literal, NamedTuple

import jax

from psann_jax.ops.kernel_checks import Example, agreed, is_sound

Kernels = Literal["auto", "plain"]
CONTEXT_AXIS = "context"  # the mesh axis that windows are divided over
_DATA_AXIS = "data"  # the one that only rows of batches are


_selected: ContextVar[Kernels] = ContextVar("selected", default="auto")
_chosen: ContextVar[dict[str, set[str]] | None] = ContextVar("chosen", default=None)
_verdicts: dict[str, bool] = {}  # kernel -> whether it passed its check on the devices of this process

# "OPERATION.NAME" -> function of the values of `Candidate.variant` that makes the kernel's problem.
EXAMPLES: dict[str, Callable[..., Example]] = {}


class Candidate(NamedTuple):
    """An implementation of an operation.

    Attributes:
      name: of the implementation, for example "cudnn".
      reason: why it cannot be used here; empty if it can.
      is_kernel: whether it is code for special devices, which model.kernels=plain turns off and which is compared with
        the reference before its first use.
      variant: of a kernel, what of the options in use decides which code it runs, such as the type and the head size;
        each variant is compared on an `Example` of its own.
    """

    name: str
    reason: str = ""
    is_kernel: bool = True
    variant: tuple[Hashable, ...] = ()


def platform() -> str:
    """Returns the platform of the current mesh, or of the default backend without one: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return _named(jax.default_backend())
    # JAX 0.10.0 does not know the platform of a mesh's devices, only their kind: "cpu", "TPU v5 lite" or a GPU's name.
    kind = device.device_kind.lower()
    guessed = "cpu" if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"
    return _named(getattr(device, "platform", guessed))


def _named(backend: str) -> str:
    return "gpu" if backend in ("cuda", "rocm") else backend


def device_kind() -> str:
    """Returns the kind of the current mesh's devices, or of the default backend's: "NVIDIA H100 80GB HBM3"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return str(jax.devices()[0].device_kind if device is None else device.device_kind)


def device_count() -> int:
    """Returns the number of devices of the current mesh, or of all processes without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def window_parts() -> int:
    """Returns the number of devices that a window is divided over in the current mesh; 1 without one."""
    return int(jax.sharding.get_abstract_mesh().shape.get(CONTEXT_AXIS, 1))


def replicas() -> int:
    """Returns how many devices of the current mesh hold the same part of each parameter, for different data."""
    shape = jax.sharding.get_abstract_mesh().shape
    return int(shape.get(_DATA_AXIS, 1) * shape.get(CONTEXT_AXIS, 1))


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

    A kernel is passed over inside `using("plain")`, and if it fails its check: the first time that a process is about
    to use it on its own devices, it is compared with the reference, see `psann_jax.ops.kernel_checks`.
    """
    plain = _selected.get() == "plain"

    def usable(candidate: Candidate) -> bool:
        if candidate.reason or not candidate.is_kernel:
            return not candidate.reason
        return not plain and _is_sound(f"{operation}.{candidate.name}", candidate.variant)

    name = next((candidate.name for candidate in candidates if usable(candidate)), candidates[-1].name)
    found = _chosen.get()
    if found is not None:
        found.setdefault(operation, set()).add(name)
    return name


def _is_sound(kernel: str, variant: tuple[Hashable, ...]) -> bool:
    if platform() != _named(jax.default_backend()) or kernel not in EXAMPLES:
        return True  # compiled for devices that are not there
    name = f"{kernel} ({', '.join(map(str, variant))})" if variant else kernel
    if name not in _verdicts:
        _verdicts[name] = agreed(name, lambda: is_sound(name, partial(EXAMPLES[kernel], *variant)))
    return _verdicts[name]


def example(kernel: str) -> Callable[[Callable[..., Example]], Callable[..., Example]]:
    """Decorator that registers the function which makes the `Example` of a variant of the kernel "OPERATION.NAME"."""

    def register(make: Callable[..., Example]) -> Callable[..., Example]:
        EXAMPLES[kernel] = make
        return make

    return register
