"""XLA flags for the processors of this machine, which XLA reads when it is loaded.

On Intel processors with AVX-512, XLA uses vectors of 256 bits and its own matrix products by default. Vectors of 512
bits and products by oneDNN made training steps there 5 to 12 % faster (2 cores of a Xeon).

For NVIDIA GPUs, XLA compiles and times many Triton kernels for every matrix product, besides those of cuBLAS. Without
them, the step of proxy_13m compiled in 38 instead of 126 seconds on a busy machine, and was as fast (13.7 and 13.8 ms,
H200). Also, for some products in float32 XLA chooses a Triton kernel that does not compile.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

SWITCH = "PSANN_JAX_PROCESSOR_FLAGS"
_CPUINFO, _NVIDIA = Path("/proc/cpuinfo"), Path("/dev/nvidiactl")
_INTEL_AVX512 = {
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_use_onednn": "true",
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
_NVIDIA_GPU = {"xla_gpu_enable_triton_gemm": "false"}


def with_processor_flags(environment: Mapping[str, str], accepted: Callable[[str], bool]) -> dict[str, str] | None:
    """Returns the environment of a program with this machine's flags in XLA_FLAGS.

    Args:
      environment: of this program. Flags that its XLA_FLAGS sets already are kept.
      accepted: whether this jaxlib knows a flag, "--name=value".

    Returns:
      None if there is nothing to set, or PSANN_JAX_PROCESSOR_FLAGS=0 forbids it. The variable is set to 1 in the new
      environment, so that a program started from it does not ask again.
    """
    if SWITCH in environment:
        return None
    cpuinfo = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    given = environment.get("XLA_FLAGS", "")
    wanted = flags_for(cpuinfo, has_nvidia_gpu=_NVIDIA.exists())
    flags = [f"--{name}={value}" for name, value in wanted.items() if name not in given]
    flags = [flag for flag in flags if accepted(flag)]
    if not flags:
        return None
    return {**environment, "XLA_FLAGS": " ".join(filter(None, (given, *flags))), SWITCH: "1"}


def flags_for(cpuinfo: str, *, has_nvidia_gpu: bool = False) -> dict[str, str]:
    """Returns the flags for a processor and its GPUs.

    Args:
      cpuinfo: the content of /proc/cpuinfo.
      has_nvidia_gpu: whether there is a GPU of NVIDIA.
    """
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    features = re.search(r"^flags\s*:(.*)", cpuinfo, re.MULTILINE)
    is_intel = vendor is not None and vendor[1] == "GenuineIntel"
    has_avx512 = features is not None and "avx512f" in features[1].split()
    return (_INTEL_AVX512 if is_intel and has_avx512 else {}) | (_NVIDIA_GPU if has_nvidia_gpu else {})


def accepted_by_jaxlib(flag: str) -> bool:
    """Asks another process, because XLA ends a process that has an unknown flag; takes 0.2 seconds."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={"XLA_FLAGS": flag}, capture_output=True, check=False).returncode == 0
