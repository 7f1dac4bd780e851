"""Devices that programs are traced for in tests, but not compiled."""

from psann_jax.ops import kernels

KINDS = {"cpu": "cpu", "gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}


def pretend(monkeypatch, platform, kind=None):
    """Makes the current mesh appear to consist of other devices."""
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    monkeypatch.setattr(kernels, "device_kind", lambda: kind or KINDS[platform])
