"""Child processes with forced CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def environment(devices=1):
    """Returns the environment of a child process with that many CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(TESTS.parent),
    }


def run_script(script, *args, devices=1, processes=1, timeout=1200):
    """Runs a script of the tests folder and returns its stdout."""
    command = [*several(processes), sys.executable, str(TESTS / script), *map(str, args)]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def several(processes):
    """Returns the prefix of a command that starts several processes."""
    return ["bash", str(TESTS.parent / "launch" / "local.sh"), str(processes), "--"] if processes > 1 else []


def start_main(*flags, devices=1, processes=1):
    """Starts the training command in the background, with pipes for its output."""
    command = [*several(processes), sys.executable, "-u", "-m", "psann_jax.main", *flags]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent
    )
