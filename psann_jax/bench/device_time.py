"""Time of a GPU's kernels, by JAX's profiler."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

_NUMBER = re.compile(r"[._]\d+")
_SHOWN = 12


def kernel_times(run: Callable[[int], object], n_steps: int = 3) -> dict[str, Any] | None:
    """Profiles steps of a program.

    Args:
      run: runs a number of steps and waits for them.
      n_steps: steps to profile.

    Returns:
      device_ms, the sum of the kernels' times per step, in milliseconds; n_kernels per step; and kernels, a list of
      (name, milliseconds per step, number per step) of those that take longest, where kernels whose names differ in
      numbers only are one. None if the profiler reports no kernels, as on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(n_steps)
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        planes = jax.profiler.ProfileData.from_file(str(traces[0])).planes if traces else ()
        return summary(planes, n_steps)


def summary(planes: Iterable[Any], n_steps: int) -> dict[str, Any] | None:
    """Returns what `kernel_times` returns, from the planes of a profile."""
    nanoseconds, number = Counter[str](), Counter[str]()
    for plane in planes:
        streams = [line for line in plane.lines if "Stream" in line.name] if "GPU" in plane.name else []
        for event in (event for line in streams for event in line.events):
            name = _NUMBER.sub("", event.name)
            nanoseconds[name] += event.duration_ns
            number[name] += 1
    if not number:
        return None
    return {
        "device_ms": sum(nanoseconds.values()) / n_steps / 1e6,
        "n_kernels": round(sum(number.values()) / n_steps),
        "kernels": [
            (name, time / n_steps / 1e6, round(number[name] / n_steps))
            for name, time in nanoseconds.most_common(_SHOWN)
        ],
    }


def lines(name: str, times: dict[str, Any]) -> list[str]:
    """Formats the result of `kernel_times` for one contender."""
    head = f"{name}: {times['n_kernels']:,} kernels take {times['device_ms']:.2f} ms of a step on the GPU; the longest:"
    return [head, *(f"  {ms:8.3f} ms {number:6,} x {kernel[:80]}" for kernel, ms, number in times["kernels"])]
