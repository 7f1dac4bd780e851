"""Comparison of a kernel with the reference on the devices at hand, before a program uses it for the first time.

A kernel that gives other values or gradients, or does not run, is refused: programs then take the next implementation,
and a warning says so. Results of comparisons are kept in a file of the user's cache directory, one per kind of device,
source code of `psann_jax.ops` and version of the libraries that compile it. That a kernel did not run is not kept: the
device's memory may have been full. In a run of several processes, process 0 compares for all of them.
"""

import contextlib
import functools
import hashlib
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import platformdirs

from psann_jax.utils.files import write_json
from psann_jax.utils.process_store import process_store

PASSED = "passed"
_FILE = "kernel_checks.json"
# Beginnings of the names of packages that take part in compiling and running a kernel.
_COMPILERS = ("jax", "libtpu", "nvidia-", "triton", "rocm")
_WAIT_S = 600  # for the verdict of process 0, which may be compiling


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


def differences(example: Example, seed: int = 0) -> dict[str, float]:
    """Compares a kernel with its reference on the default device.

    Args:
      example: the problem.
      seed: of its inputs, and of the gradient of its result.

    Returns:
      For "value", and "gradient i" of each argument i of a float type, the largest difference as a fraction of the
      largest absolute value of the reference's array; infinite where the kernel's array is not finite.
    """
    inputs_key, result_key = jax.random.split(jax.random.key(seed))
    inputs = example.inputs(inputs_key)
    floats = [i for i, x in enumerate(inputs) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)]

    def value_and_gradients(f: Callable[..., jax.Array]) -> list[jax.Array]:
        def of_floats(*given: jax.Array) -> jax.Array:
            filled = dict(zip(floats, given, strict=True))
            return f(*(filled.get(i, x) for i, x in enumerate(inputs)))

        value, pull = jax.vjp(of_floats, *(inputs[i] for i in floats))
        gradient = jax.random.normal(result_key, value.shape, jnp.float32).astype(value.dtype)
        return [value, *pull(gradient)]

    got, expected = (jax.jit(lambda f=f: value_and_gradients(f))() for f in (example.kernel, example.reference))
    names = ["value", *(f"gradient {i}" for i in floats)]
    return {name: _difference(a, b) for name, a, b in zip(names, got, expected, strict=True)}


def _difference(got: jax.Array, expected: jax.Array) -> float:
    got, expected = got.astype(jnp.float32), expected.astype(jnp.float32)
    largest = jnp.maximum(jnp.max(jnp.abs(expected)), jnp.finfo(jnp.float32).tiny)
    error = jnp.max(jnp.abs(got - expected)) / largest
    return float(error) if bool(jnp.isfinite(error)) else float("inf")


def is_sound(kernel: str, make_example: Callable[[], Example]) -> bool:
    """Returns whether a kernel equals the reference on the default device; warns if it does not.

    Args:
      kernel: its name and variant, "OPERATION.NAME (VARIANT)".
      make_example: makes the `Example`.
    """
    kind = jax.devices()[0].device_kind
    entry = f"{kernel}; {kind}; jax {jax.__version__}; {_code()}"
    outcome = _results().get(entry)
    again = f"to check again, delete {_FILE} in the cache directory"
    if outcome is None:
        outcome, compared = _outcome(make_example)
        if compared:
            _keep({entry: outcome})
        else:
            again = "the next start checks again"
    if outcome == PASSED:
        return True
    warnings.warn(
        f"the kernel {kernel} is not used: on {kind} {outcome}. A slower implementation takes its place. Please report "
        f"this line with the output of psann-jax selftest; {again}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def agreed(kernel: str, check: Callable[[], bool]) -> bool:
    """Returns the result of a check, in a run of several processes that of process 0 in all of them.

    Processes that decided alone could compile different programs, which then wait for each other forever. Process 0
    waits for no other, so it may also use a kernel in a program of its own.
    """
    store = process_store()
    if store is None:
        return check()
    name = f"psann_jax/kernels/{kernel}"
    if jax.process_index() == 0:
        verdict = check()
        store.key_value_set(name, str(verdict), allow_overwrite=True)
        return verdict
    try:
        return bool(store.blocking_key_value_get(name, _WAIT_S * 1000) == str(True))
    except jax.errors.JaxRuntimeError:  # process 0 does not use the kernel
        return check()


@functools.cache
def _code() -> str:
    """Returns a digest of the source code of the kernels and of the versions of what compiles and runs them."""
    found = {str(path.name): path.read_bytes() for path in Path(__file__).parent.glob("*.py")}
    names = ((package.metadata["Name"] or "", package.version) for package in distributions())
    versions = sorted(f"{name} {version}" for name, version in names if name.lower().startswith(_COMPILERS))
    digest = hashlib.sha256(jax.devices()[0].client.platform_version.encode())
    for part in (*versions, *(f"{name} {hashlib.sha256(found[name]).hexdigest()}" for name in sorted(found))):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _outcome(make_example: Callable[[], Example]) -> tuple[str, bool]:
    """Runs a comparison; returns `PASSED`, or what is wrong in a few words, and whether the kernel ran."""
    outcome = ["it did not run"]
    compared = []

    def compare() -> None:
        try:
            example = make_example()
            found = differences(example)
        except Exception as error:  # of any kind: another implementation takes its place
            first = (str(error).splitlines() or [""])[0]
            outcome[0] = f"it fails with {type(error).__name__}: {first[:200]}"
            return
        worst = max(found, key=lambda name: found[name])
        passed = found[worst] <= example.tolerance
        outcome[0] = PASSED if passed else f"its {worst} differs from the reference by {found[worst]:.1g}"
        compared.append(True)

    # In a thread of its own, because a kernel is chosen while a program is traced, and here the arrays are real.
    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    return outcome[0], bool(compared)


def _file() -> Path:
    return platformdirs.user_cache_path("psann_jax", appauthor=False) / _FILE


def _results() -> dict[str, str]:
    """The kept results; none if there is no file, or it cannot be read."""
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError, RuntimeError, KeyError):  # the last two: there is no home directory
        return {}
    return found if isinstance(found, dict) else {}


def _keep(results: dict[str, str]) -> None:
    """Keeps results if the directory can be written; else the next process compares again."""
    with contextlib.suppress(OSError, RuntimeError, KeyError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), _results() | results)
