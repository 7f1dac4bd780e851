"""CPU cores and memory of this process; imports no JAX."""

import os
import platform
import re
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Returns the number of cores this process may run on; in a container or job, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_resident_bytes() -> int:
    """Returns the peak resident set size of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its ru_maxrss survives exec, so a child would report its parent's size.
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    if platform.system() == "Windows":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
