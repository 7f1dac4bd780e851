"""Devices, peak memory and model FLOP/s utilisation."""

import platform
import re
from pathlib import Path

import jax

from psann_jax.utils.host import peak_resident_bytes, usable_cores

# Peak dense matrix FLOP/s by `jax.Device.device_kind`: (pattern, with 16-bit inputs, with float32 inputs).
# float32 is the TF32 rate, because XLA multiplies float32 in TF32 on these GPUs by default; no such figure is published
# for TPUs. Data sheets often state twice these values, "with sparsity". Unlisted variants (laptop and MIG devices,
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
    """Returns the peak dense matrix FLOP/s of one device; None if unknown.

    Args:
      device_kind: value of `jax.Device.device_kind`.
      precision: of the computation: fp32, bf16 or fp16.
    """
    for pattern, half, single in _PEAKS:
        if re.fullmatch(pattern, device_kind):
            if precision == "fp16" and device_kind.startswith("TPU"):
                return None
            return single if precision == "fp32" else half
    return None


def mfu(tokens_per_s: float, flops_per_token: float, precision: str) -> float | None:
    """Returns the model FLOP/s utilisation (Chowdhery et al., 2022, "PaLM"), a fraction; None on unknown hardware.

    Args:
      tokens_per_s: throughput over all devices.
      flops_per_token: see `psann_jax.models.flops`.
      precision: of the computation: fp32, bf16 or fp16.
    """
    devices = jax.devices()
    peak = peak_flops(devices[0].device_kind, precision)
    return None if peak is None else tokens_per_s * flops_per_token / (peak * len(devices))


def peak_memory_mb() -> float:
    """Returns the peak memory use so far, in 10^6 bytes.

    On an accelerator that is the maximum over this process's devices, on CPU the peak resident set of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return (max(peaks) if peaks else peak_resident_bytes()) / 1e6


def device_description() -> str:
    """Returns for example "8 x NVIDIA H200 in 2 processes" or "1 x CPU (AMD EPYC 7763, 2 cores)"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"CPU ({_cpu_name()}, {usable_cores()} cores)"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {kind}{processes}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()
