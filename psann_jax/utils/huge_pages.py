"""Huge pages for the memory of a command.

On a CPU a step's temporary arrays are new memory every time, and in pages of 4 KiB it took the kernel a tenth to a
quarter of most steps measured to hand them out (BENCHMARKS.md). Where it gives huge pages to those who ask, as most
distributions have it, the C library can ask; but it reads that wish only when a program starts.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"  # since glibc 2.35


def restart_with_huge_pages() -> None:
    """Starts this program again, as it was called, with an environment in which malloc asks for huge pages.

    Does nothing where that has been done, would change nothing (another system, an older C library, a kernel that
    grants always or never), or GLIBC_TUNABLES=glibc.malloc.hugetlb=0 forbids it.
    """
    granted_on_request = _KERNEL.exists() and "[madvise]" in _KERNEL.read_text()
    environment = asking(os.environ, _c_library()) if granted_on_request else None
    if environment is not None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def asking(environment: Mapping[str, str], c_library: str) -> dict[str, str] | None:
    """The environment of a program that asks for huge pages.

    Args:
      environment: of this one; what it says of GLIBC_TUNABLES is kept.
      c_library: its name and version, as "glibc 2.36".

    Returns:
      None if this environment decides the matter already, or the library could not ask.
    """
    name, _, version = c_library.partition(" ")
    tunables = environment.get("GLIBC_TUNABLES", "")
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35) or _TUNABLE in tunables:
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}


def _c_library() -> str:
    return os.confstr("CS_GNU_LIBC_VERSION") or "" if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
