"""Shared fixtures. Tests run on the CPU backend; all their processes share what they have compiled.

Most of the suite's time is compilation, so LLVM's optimiser is off. On x86, XLA's older loop emitters are used where
this jaxlib still has them, since they compile faster, with instructions up to AVX (their unoptimised rsqrt is wrong
with AVX2). XLA's own passes, and with them the order of sums, stay on. TESTS_OPTIMIZATION=3 in the environment tests
the code that users run.
"""

import gc
import os
import pathlib
import shutil
import signal
import tempfile

from tests.support.xla_flags import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
# The first process asks XLA once; its workers, and the processes that tests start, inherit the answer.
os.environ["XLA_FLAGS"] = os.environ["TESTS_XLA_FLAGS"] = os.environ.get("TESTS_XLA_FLAGS") or xla_flags()
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # for the children, which need not start twice for it
os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
# Made by the first process; its workers and the children of tests inherit it.
os.environ["TESTS_PROGRAMS"] = os.environ.get("TESTS_PROGRAMS") or tempfile.mkdtemp(prefix="psann_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["TESTS_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
import pytest

# Compiled programs are dropped above the first, and then after each growth by the second: much of the memory does not
# return to the system, and a process that dropped them after every file would trace everything again.
_MAX_MEMORY_BYTES = 1.5e9
_GROWTH_BYTES = 0.7e9
_LIMIT = pytest.StashKey[float]()

# JAX makes so many objects that to look through them again and again takes a tenth of the time.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache directory of the test's own, where nothing else names one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def default_signals():
    """SIGINT and SIGHUP with their default action, for one test and its child processes.

    A shell starts background jobs with SIGINT ignored, nohup with SIGHUP ignored, and children inherit that.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_runtest_teardown(item, nextitem):
    """Drops the compiled programs of a file's tests when they take much memory; other files rarely use them."""
    limit = item.config.stash.get(_LIMIT, _MAX_MEMORY_BYTES)
    if nextitem is not None and nextitem.path != item.path and _memory_bytes() > limit:
        jax.clear_caches()
        gc.collect()
        item.config.stash[_LIMIT] = max(_MAX_MEMORY_BYTES, _memory_bytes() + _GROWTH_BYTES)


def _memory_bytes():
    """Memory of this process in use; 0 where the system does not tell."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def pytest_unconfigure(config):
    """Removes the compiled programs, in the process that has made their directory."""
    made_here = os.path.basename(os.environ["TESTS_PROGRAMS"]).startswith("psann_jax_tests_")
    if made_here and not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["TESTS_PROGRAMS"], ignore_errors=True)
