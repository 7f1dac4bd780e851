"""ops/gpu_kinds.py: names of boards, as drivers report them."""

import pytest

from psann_jax.ops.gpu_kinds import architecture

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
