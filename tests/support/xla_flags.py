"""XLA flags with which the tests compile quickly; must not import JAX."""

import os
import platform
import subprocess
import sys

_OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"  # not known to jaxlib 0.11 and newer


def xla_flags() -> str:
    """Returns the value of XLA_FLAGS for the tests, without flags that this jaxlib does not know."""
    if os.environ.get("TESTS_OPTIMIZATION") == "3":
        return "--xla_backend_optimization_level=3"
    flags = "--xla_backend_optimization_level=0"
    if platform.machine() == "x86_64" and _accepted(_OLDER_EMITTERS):
        flags += f" {_OLDER_EMITTERS}"
    return flags


def _accepted(flags: str) -> bool:
    # XLA ends a process that has an unknown flag in XLA_FLAGS, so another process tries them. It takes 0.2 seconds.
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    env = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False).returncode == 0
