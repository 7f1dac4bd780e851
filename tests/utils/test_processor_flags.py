"""XLA flags by processor: only where they help, only those that jaxlib knows, never over the user's own."""

import os
import subprocess
import sys

import pytest

from psann_jax.utils import processor_flags
from psann_jax.utils.processor_flags import accepted_by_jaxlib, flags_for, with_processor_flags

XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx2 avx512f avx512bw\n"
OLD_XEON = XEON.replace(" avx512f avx512bw", "")
EPYC = XEON.replace("GenuineIntel", "AuthenticAMD")


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(XEON)
    monkeypatch.setattr(processor_flags, "_CPUINFO", path)
    monkeypatch.setattr(processor_flags, "_NVIDIA", tmp_path / "nvidiactl")
    return path


@pytest.mark.parametrize(("text", "n"), [(XEON, 3), (OLD_XEON, 0), (EPYC, 0), ("", 0), ("flags: x\n", 0)])
def test_only_intel_with_avx512_has_flags(text, n):
    assert len(flags_for(text)) == n


def test_a_gpu_of_nvidia_has_flags_of_its_own(cpuinfo):
    gpu = "--xla_gpu_enable_triton_gemm=false"
    assert gpu not in with_processor_flags({}, lambda flag: True)["XLA_FLAGS"]
    (cpuinfo.parent / "nvidiactl").touch()
    assert gpu in with_processor_flags({}, lambda flag: True)["XLA_FLAGS"].split()
    given = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true"}
    assert gpu not in with_processor_flags(given, lambda flag: True)["XLA_FLAGS"].split()
    assert accepted_by_jaxlib(gpu)


def test_flags_are_added_once(cpuinfo):
    found = with_processor_flags({"HOME": "/"}, lambda flag: True)
    assert found["HOME"] == "/"
    assert "--xla_cpu_prefer_vector_width=512" in found["XLA_FLAGS"].split()
    assert with_processor_flags(found, lambda flag: True) is None


def test_the_users_flags_are_kept(cpuinfo):
    given = {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=256 --xla_dump_to=x"}
    found = with_processor_flags(given, lambda flag: True)["XLA_FLAGS"].split()
    assert found[:2] == given["XLA_FLAGS"].split()
    assert sum("vector_width" in flag for flag in found) == 1


def test_flags_that_jaxlib_does_not_know_are_left_out(cpuinfo):
    found = with_processor_flags({}, lambda flag: "onednn=" in flag)
    assert found["XLA_FLAGS"] == "--xla_cpu_use_onednn=true"
    assert with_processor_flags({}, lambda flag: False) is None
    assert accepted_by_jaxlib("--xla_dump_to=x")
    assert not accepted_by_jaxlib("--xla_no_such_flag=1")


def test_the_switch_turns_them_off(cpuinfo):
    assert with_processor_flags({"PSANN_JAX_PROCESSOR_FLAGS": "0"}, lambda flag: True) is None
    cpuinfo.unlink()
    assert with_processor_flags({}, lambda flag: True) is None


PROGRAM = """
import os, pathlib
from psann_jax.utils import huge_pages, processor_flags, restart
huge_pages._KERNEL = pathlib.Path("/nowhere")
processor_flags._CPUINFO = pathlib.Path(os.environ["CPUINFO"])
print(os.environ.get("XLA_FLAGS"))
restart.restart_tuned()
import jax
print(float(jax.jit(lambda x: x @ x.T)(jax.numpy.ones((40, 30)))[0, 0]))
"""


def test_a_program_restarts_with_flags_that_work(cpuinfo):
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", processor_flags.SWITCH)}
    environment = own | {"CPUINFO": str(cpuinfo)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, product = done.stdout.splitlines()
    assert before == "None"
    assert after.count("--xla_cpu") == len(
        [flag for flag in flags_for(XEON).items() if accepted_by_jaxlib("--{}={}".format(*flag))]
    )
    assert product == "30.0"
