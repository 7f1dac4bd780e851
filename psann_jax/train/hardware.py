"""What the run is on: devices, peak memory, and model FLOP/s utilisation where the hardware's peak is known."""

import os
import platform
import re
from pathlib import Path

import jax
import psutil

# Peak dense matrix FLOP/s by `jax.Device.device_kind`: (pattern, with 16-bit inputs, with float32 inputs).
# float32 is the rate of TF32, in which XLA multiplies float32 on these GPUs by default; TPUs have no such figure.
# Vendors' sheets often state twice as much, "with sparsity". Variants that are not listed (laptop and MIG devices,
# other boards) differ, so they must not match.
_PEAKS: tuple[tuple[str, float, float | None], ...] = (
    # NVIDIA A100 Tensor Core GPU datasheet (2021)
    (r"NVIDIA A100-(SXM4|PCIE|PCIe)-\d+GB|NVIDIA A100 80GB PCIe", 312e12, 156e12),
    # NVIDIA H100 Tensor Core GPU datasheet (2023): SXM5, PCIe and NVL
    (r"NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
    (r"NVIDIA H100 PCIe", 756e12, 378e12),
    (r"NVIDIA H100 NVL", 835e12, 417.5e12),
    # NVIDIA H200 Tensor Core GPU datasheet (2024): SXM and NVL
    (r"NVIDIA H200", 989.4e12, 494.7e12),
    (r"NVIDIA H200 NVL", 835e12, 417.5e12),
    # NVIDIA HGX B200 specifications (2024), one of eight GPUs
    (r"NVIDIA B200", 2250e12, 1125e12),
    # NVIDIA L4 and L40S datasheets (2023)
    (r"NVIDIA L4", 121e12, 60e12),
    (r"NVIDIA L40S", 362e12, 183e12),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: 16-bit inputs with float32 accumulation
    (r"NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    # Google Cloud TPU system architecture pages, one chip
    (r"TPU v4", 275e12, None),
    (r"TPU v5 lite|TPU v5e", 197e12, None),
    (r"TPU v5|TPU v5p", 459e12, None),
    (r"TPU v6 lite|TPU v6e", 918e12, None),
)


def peak_flops(device_kind: str, precision: str) -> float | None:
    """The peak dense matrix FLOP/s of one device; None if it is not known.

    Args:
      device_kind: as `jax.Device.device_kind` has it.
      precision: of the computation, as in `TrainConfig`: fp32, bf16 or fp16.
    """
    for pattern, half, single in _PEAKS:
        if re.fullmatch(pattern, device_kind):
            if precision == "fp16" and device_kind.startswith("TPU"):
                return None
            return single if precision == "fp32" else half
    return None


def training_flops_per_token(matmul_params: int, n_layers: int, d_model: float, length: int) -> float:
    """Matrix FLOPs of one token's forward and backward pass in a decoder, without recomputation.

    Six for every parameter that multiplies (Kaplan et al., 2020, "Scaling Laws for Neural Language Models"), and
    ``6 * n_layers * length * d_model`` for attention. Attention counts causally: a token sees half of the window on
    average, so this is half of what a count over the full square gives. Document masks are not taken into account.

    Args:
      matmul_params: weights that take part in matrix products; not the embedding table, which is looked up.
      n_layers: layers with attention.
      d_model: width of queries, keys and values over all heads; the mean of keys and values where they differ.
      length: tokens in a window.
    """
    return 6.0 * matmul_params + 6.0 * n_layers * length * d_model


def mfu(tokens_per_s: float, flops_per_token: float, precision: str) -> float | None:
    """Model FLOP/s utilisation (Chowdhery et al., 2022, "PaLM"), over all devices; None on unknown hardware.

    Args:
      tokens_per_s: of the whole run, over all devices.
      flops_per_token: see `training_flops_per_token`.
      precision: of the computation: fp32, bf16 or fp16.

    Returns:
      A share between 0 and 1.
    """
    devices = jax.devices()
    peak = peak_flops(devices[0].device_kind, precision)
    return None if peak is None else tokens_per_s * flops_per_token / (peak * len(devices))


def peak_memory_mb() -> float:
    """The most memory in use so far, in 10^6 bytes.

    On an accelerator, of the fullest of this process's devices; on CPU, the peak resident set of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return (max(peaks) if peaks else _peak_resident_bytes()) / 1e6


def _peak_resident_bytes() -> int:
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


def device_description() -> str:
    """For example "8 x NVIDIA H200 in 2 processes" or "1 x CPU (AMD EPYC 7763, 2 cores)"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"CPU ({_cpu_name()}, {_usable_cores()} cores)"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {kind}{processes}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores that this process may run on, which in a container or job can be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
