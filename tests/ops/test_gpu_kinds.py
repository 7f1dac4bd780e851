"""ops/gpu_kinds.py: names of boards, as drivers report them."""

import jax.numpy as jnp
import pytest

from psann_jax.ops import gpu_kinds
from psann_jax.ops.causal_filter import choose_filter
from psann_jax.ops.full_attention import choose_full_attention
from psann_jax.ops.gpu_kinds import architecture, no_triton
from psann_jax.ops.gravity_attention import choose_gravity
from psann_jax.ops.gravity_kernel import GravityCase
from psann_jax.ops.gravity_scores import GravityForm
from psann_jax.ops.sine import choose_sine
from tests.support.devices import pretend

KINDS = {
    "blackwell": ["NVIDIA B200", "NVIDIA GB200", "NVIDIA B100", "NVIDIA GB300", "NVIDIA B300 SXM6 AC"],
    "hopper": [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200",
        "NVIDIA GH200 480GB",
        "NVIDIA H800",
        "NVIDIA H20",
    ],
    "ampere": [
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA A10",
        "NVIDIA A10G",
        "NVIDIA L4",
        "NVIDIA L40S",
        "NVIDIA RTX A6000",
        "NVIDIA GeForce RTX 3090",
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "NVIDIA GeForce RTX 5090",
        "NVIDIA RTX 6000 Ada Generation",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "NVIDIA GB10",
    ],
    "": [
        "Tesla T4",
        "Tesla V100-SXM2-16GB",
        "NVIDIA TITAN RTX",
        "NVIDIA GeForce RTX 2080 Ti",
        "NVIDIA GeForce GTX 1080",
        "AMD Instinct MI300X",
        "TPU v5 lite",
        "cpu",
    ],
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in KINDS.items() for kind in kinds])
def test_architecture(name, kind):
    assert architecture(kind) == name


@pytest.mark.parametrize(("kind", "reason"), [("NVIDIA H100 80GB HBM3", ""), ("Tesla T4", "Ampere or newer")])
def test_triton_needs_ampere(kind, reason, monkeypatch):
    assert reason in no_triton(kind)
    assert bool(no_triton(kind)) == bool(reason)
    monkeypatch.setattr(gpu_kinds, "find_spec", lambda name: None)
    assert no_triton("NVIDIA H100 80GB HBM3").startswith("needs Pallas for Triton")


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "Tesla T4"])
def test_no_kernel_of_triton_is_chosen_on_old_gpus(kind, monkeypatch):
    pretend(monkeypatch, "gpu", kind)
    chosen = {
        choose_sine(jnp.bfloat16),
        choose_filter(jnp.bfloat16, 64),
        choose_full_attention(jnp.bfloat16, 81, 32),
        choose_gravity("auto", GravityCase(GravityForm(), "bfloat16", 64, 16)),
    }
    assert chosen & {"triton", "pallas"} == ({"triton", "pallas"} if "H100" in kind else set())
