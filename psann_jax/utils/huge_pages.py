"""Huge pages for the memory of a command.

On a CPU, every step allocates new memory for its temporary arrays. With 4 KiB pages, the kernel spent a tenth to a
quarter of most measured steps on that (BENCHMARKS.md). Most distributions grant huge pages on request (madvise), and
the C library can request them, but it reads that setting only when a program starts.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"  # since glibc 2.35


def pages_on_request() -> bool:
    """Returns whether this kernel grants huge pages to programs that request them."""
    return _KERNEL.exists() and "[madvise]" in _KERNEL.read_text()


def with_huge_pages(environment: Mapping[str, str], c_library: str | None = None) -> dict[str, str] | None:
    """Returns the environment of a program whose malloc requests huge pages.

    Args:
      environment: of this program; other entries of GLIBC_TUNABLES are kept.
      c_library: name and version, such as "glibc 2.36"; None: that of this system.

    Returns:
      None if `environment` already sets the option (GLIBC_TUNABLES=glibc.malloc.hugetlb=0 forbids it), or the C library
      does not have it.
    """
    name, _, version = (_c_library() if c_library is None else c_library).partition(" ")
    tunables = environment.get("GLIBC_TUNABLES", "")
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35) or _TUNABLE in tunables:
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}


def _c_library() -> str:
    return os.confstr("CS_GNU_LIBC_VERSION") or "" if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
