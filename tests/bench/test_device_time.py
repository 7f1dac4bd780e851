"""bench/device_time.py: what is read from a profile."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from psann_jax.bench.device_time import kernel_times, lines, summary


def plane(name, **events):
    """A plane whose lines hold events, (name, ns) each."""
    found = [
        SimpleNamespace(name=line, events=[SimpleNamespace(name=n, duration_ns=ns) for n, ns in of_line])
        for line, of_line in events.items()
    ]
    return SimpleNamespace(name=name, lines=found)


def test_kernels_are_added_over_streams_and_divided_by_steps():
    gpu = plane(
        "/device:GPU:0",
        **{
            "Stream #13(Compute)": [("fusion.12", 2e6), ("fusion_7", 4e6), ("dot", 1e6)],
            "Stream #14(Memcpy)": [("dot", 3e6)],
            "XLA Ops": [("step", 9e9)],  # the same time again
        },
    )
    times = summary([plane("/host:CPU", **{"Stream": [("python", 5e9)]}), gpu], 2)
    assert times["device_ms"] == pytest.approx(5)
    assert times["n_kernels"] == 2
    assert times["kernels"] == [("fusion", pytest.approx(3), 1), ("dot", pytest.approx(2), 1)]
    assert lines("ours", times)[0].startswith("ours: 2 kernels take 5.00 ms")


def test_a_cpu_has_no_kernels():
    assert summary([], 1) is None
    assert kernel_times(lambda n_steps: (jnp.arange(4) * n_steps).block_until_ready()) is None
