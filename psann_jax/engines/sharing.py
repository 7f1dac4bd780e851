"""Divides the cores and GPUs of this machine among jobs that run at once."""

import os
import subprocess
import sys
from dataclasses import dataclass

from psann_jax.utils.errors import UserError
from psann_jax.utils.host import usable_cores

_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX reads either
_DEFAULT_FRACTION = 0.75  # of JAX


@dataclass(frozen=True)
class Share:
    """One job's part of the machine.

    Attributes:
      cores: numbers of its CPU cores; (): all, where a process cannot be restricted to some.
      environment: variables that give the job its GPUs and their memory.
      shares: whether its speed depends on other jobs: they use the same CPU, or the same GPU.
    """

    cores: tuple[int, ...]
    environment: dict[str, str]
    shares: bool


def divide(n_jobs: int, platform: str, n_devices: int) -> list[Share]:
    """Returns the parts of `n_jobs` jobs.

    Cores and GPUs are dealt out evenly. With fewer of them than jobs, some jobs share a core or a GPU, and each gets an
    equal fraction of the memory that JAX would use of the GPU.

    Args:
      n_jobs: number of jobs at once, at least 2.
      platform: cpu or gpu, as `jax.default_backend()` names it.
      n_devices: number of devices of that platform.

    Raises:
      UserError: on another platform, whose devices belong to one process.
    """
    if platform not in ("cpu", "gpu"):
        raise UserError(f"--jobs: {platform} devices belong to one run at a time; omit it, or set JAX_PLATFORMS=cpu")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = _gpus(n_devices) if platform == "gpu" else []
    return [_share(i, n_jobs, cores, gpus) for i in range(n_jobs)]


def _share(i: int, n_jobs: int, cores: list[int], gpus: list[str]) -> Share:
    if n_jobs <= len(cores):
        first, last = (k * len(cores) // n_jobs for k in (i, i + 1))
        own_cores = cores[first:last]  # neighbours, which share caches
    else:
        own_cores = [cores[i % len(cores)]] if cores else []
    environment = {} if cores else {"NPROC": str(max(usable_cores() // n_jobs, 1))}
    own_gpus = gpus[i::n_jobs] or [gpus[i % len(gpus)]] if gpus else []
    on_one_gpu = len(range(i % len(gpus), n_jobs, len(gpus))) if gpus else 0
    if own_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own_gpus)
    if on_one_gpu > 1:
        environment |= part_of_gpu(1 / on_one_gpu)
    return Share(tuple(own_cores), environment, shares=not gpus or on_one_gpu > 1)


def _gpus(n_devices: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in visible.split(",")] if visible else [str(i) for i in range(n_devices)]


def part_of_gpu(part: float) -> dict[str, str]:
    """Returns variables with which a job uses a part of the memory that JAX would use of a GPU alone.

    Raises:
      UserError: the user's own fraction is not a number.
    """
    given = next((os.environ[name] for name in _FRACTIONS if os.environ.get(name)), _DEFAULT_FRACTION)
    try:
        return dict.fromkeys(_FRACTIONS, f"{part * float(given):.4f}")
    except ValueError as error:
        raise UserError(f"{_FRACTIONS[1]}: is {given!r}, must be a number") from error


def find_devices() -> tuple[str, int]:
    """Returns the platform of this machine's devices and their number, without holding them.

    Raises:
      UserError: JAX finds no device.
    """
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("--jobs: no device can be used")
    platform, count = done.stdout.split()[-2:]
    return platform, int(count)
