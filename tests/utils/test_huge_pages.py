"""Commands restart once with malloc set to request huge pages, and only where that has an effect."""

import os
import subprocess
import sys

import pytest

from psann_jax.utils import huge_pages

# Prints its process id, tunables and arguments at every start.
PROGRAM = """
import os, sys, pathlib
from psann_jax.utils import huge_pages, processor_flags, restart
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
huge_pages._KERNEL = pathlib.Path(sys.argv[1])
processor_flags._CPUINFO = pathlib.Path("/nowhere")
restart.restart_tuned()
print("works", sys.stdin.read())
"""


def starts(tmp_path, granted, **environment):
    """Returns (pid, tunables, arguments) of every start of a program, given the kernel's setting of huge pages."""
    kernel = tmp_path / "enabled"
    kernel.write_text(granted)
    own = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, str(kernel), "--config.a=b c"]
    done = subprocess.run(command, input="input", env=own | environment, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert last == "works input"
    assert all(line.endswith(repr([str(kernel), "--config.a=b c"])) for line in lines)
    return [tuple(line.split()[:2]) for line in lines]


@pytest.mark.skipif(huge_pages.with_huge_pages({}) is None, reason="needs glibc 2.35")
def test_a_program_restarts_once_with_the_same_arguments(tmp_path):
    (first, before), (second, after) = starts(tmp_path, "always [madvise] never")
    assert first == second, "the same process, for those who signal it"
    assert (before, after) == ("None", "glibc.malloc.hugetlb=1")


@pytest.mark.parametrize("granted", ["[always] madvise never", "always madvise [never]"])
def test_no_restart_if_the_kernel_takes_no_requests(tmp_path, granted):
    assert len(starts(tmp_path, granted)) == 1


def test_the_user_can_disable_it(tmp_path):
    assert len(starts(tmp_path, "always [madvise] never", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")) == 1


@pytest.mark.parametrize(
    ("library", "tunables", "expected"),
    [
        ("glibc 2.35", None, "glibc.malloc.hugetlb=1"),
        ("glibc 2.41", "glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc 3.1", "", "glibc.malloc.hugetlb=1"),
        ("glibc 2.31", None, None),
        ("", None, None),
        ("glibc 2.36", "glibc.malloc.hugetlb=2", None),
    ],
)
def test_existing_tunables_are_kept(library, tunables, expected):
    environment = {"HOME": "/"} | ({} if tunables is None else {"GLIBC_TUNABLES": tunables})
    found = huge_pages.with_huge_pages(environment, library)
    assert (found and found["GLIBC_TUNABLES"]) == expected
    assert found is None or found["HOME"] == "/"
