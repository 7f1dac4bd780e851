"""Peak FLOP/s, peak memory and device names."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from psann_jax.train import hardware


@pytest.mark.parametrize(
    ("kind", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA H200 NVL", 835e12, 417.5e12),
        ("NVIDIA B200", 2250e12, 1125e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("TPU v4", 275e12, None),
        ("TPU v5 lite", 197e12, None),
        ("TPU v5", 459e12, None),
        ("TPU v5p", 459e12, None),
        ("TPU v6 lite", 918e12, None),
        # Unlisted, and must not match a similar name.
        ("NVIDIA L40", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("cpu", None, None),
    ],
)
def test_peak_flops(kind, bf16, fp32):
    assert hardware.peak_flops(kind, "bf16") == bf16
    assert hardware.peak_flops(kind, "fp32") == fp32
    assert hardware.peak_flops(kind, "fp16") == (None if kind.startswith("TPU") else bf16)


def test_mfu_counts_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="TPU v4")] * 4)
    assert hardware.mfu(1e6, 275e6, "bf16") == pytest.approx(0.25)
    assert hardware.mfu(1e6, 275e6, "fp32") is None


def test_no_mfu_on_unknown_hardware():
    assert hardware.mfu(1e6, 1e6, "bf16") is None


def test_peak_memory_of_accelerators_is_that_of_the_fullest_device(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (10**9, 3 * 10**9)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert hardware.peak_memory_mb() == 3000


def test_peak_memory_on_cpu_includes_freed_memory():
    code = """
import numpy as np
from psann_jax.train.hardware import peak_memory_mb
print(peak_memory_mb())
np.ones(25_000_000)
print(peak_memory_mb())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, out.stdout.split())
    assert 50 < before < after
    assert 150 < after - before < 260  # the array has 200 MB


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only")
def test_peak_memory_is_not_inherited_from_the_parent():
    block = np.ones(60_000_000)  # 480 MB in the parent while the child starts
    code = "from psann_jax.utils.host import peak_resident_bytes; print(peak_resident_bytes())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    del block
    assert int(out.stdout) < 450e6


def test_device_description_names_the_cpu():
    text = hardware.device_description()
    assert text.startswith(f"{jax.device_count()} x CPU (")
    assert text.endswith(" cores)")
