"""The analytic model of a training step, against values calculated by hand."""

import dataclasses

import pytest

from psann_jax.bench.scaling import Cluster, estimate, report
from psann_jax.config import Config, ConfigError, DataConfig, DecoderConfig, MeshConfig, TrainConfig

CLUSTER = Cluster(flops=1e12, node=8, fast=1e11, slow=1e10)
CONFIG = Config(
    model=DecoderConfig(base="transformer", vocab_size=1000, d_model=64, n_layers=2, n_heads=4, d_mlp=128),
    data=DataConfig(max_length=32),
    train=TrainConfig(batch_tokens=8192, precision="bf16"),
)
MATRICES = 2 * (4 * 64 * 64 + 64 * 128 * 2)
N_PARAMS = 1000 * 64 * 2 + MATRICES + 2 * (128 + 64 + 4 * 64) + 2 * 64


def on(mesh, devices, **train):
    config = dataclasses.replace(CONFIG, mesh=mesh, train=dataclasses.replace(CONFIG.train, **train))
    (result,) = estimate(config, CLUSTER, [devices])
    return result


def test_one_device_only_computes():
    e = on(MeshConfig(), 1)
    assert (e.data_s, e.fsdp_s, e.tensor_s, e.efficiency) == (0, 0, 0, 1)
    assert e.state_mb == pytest.approx(16 * N_PARAMS / 1e6, rel=1e-3)
    assert e.compute_s == pytest.approx(8192 * (6 * (MATRICES + 64000) + 6 * 2 * 32 * 64) / 1e12)


def test_the_state_is_that_of_the_optimizer():
    mb = {name: on(MeshConfig(), 1, optimizer=name).state_mb for name in ("adamw", "muon")}
    assert mb["adamw"] == pytest.approx(16 * N_PARAMS / 1e6, rel=1e-3), "two moments"
    assert mb["adamw"] - mb["muon"] == pytest.approx(4 * MATRICES / 1e6, rel=1e-3), "matrices have one moment"
    averaged = on(MeshConfig(), 1, ema_decay=0.999).state_mb
    assert averaged - mb["adamw"] == pytest.approx(4 * N_PARAMS / 1e6)


def test_both_gradients_of_sharpness_aware_minimisation_are_computed_and_sent():
    mesh = MeshConfig(fsdp=2, tensor=2)
    one, two = on(mesh, 16), on(mesh, 16, sam_rho=0.05)
    for term in ("compute_s", "fsdp_s", "tensor_s", "data_s"):
        assert getattr(two, term) == pytest.approx(2 * getattr(one, term)), term


def test_gradients_of_frozen_weights_are_neither_kept_nor_sent():
    """Compiled programs agree: XLA sums the gradients of trained weights and, with adapters, of their matrices."""
    data, fsdp = MeshConfig(), MeshConfig(fsdp=4)
    without_matrices = {"freeze": ("matrix",)}
    saved = on(data, 8).data_s - on(data, 8, **without_matrices).data_s
    assert saved == pytest.approx(2 * 7 / 8 * 4 * MATRICES / 1e11)
    saved = on(fsdp, 4).fsdp_s - on(fsdp, 4, **without_matrices).fsdp_s
    assert saved == pytest.approx(3 / 4 * 4 * MATRICES / 1e11), "the weights are gathered all the same"
    saved = on(data, 1).state_mb - on(data, 1, **without_matrices).state_mb
    assert saved == pytest.approx(12 * MATRICES / 1e6), "the gradient and two moments"
    assert on(data, 8, lora_rank=2).data_s == pytest.approx(2 * 7 / 8 * 4 * MATRICES / 1e11)


def test_blocks_below_which_nothing_is_trained_have_no_backward_pass():
    mesh, head_alone = MeshConfig(fsdp=2, tensor=2), {"freeze": ("embedding", "matrix", "bias", "norm")}
    every, head = on(mesh, 4), on(mesh, 4, **head_alone)
    assert head.tensor_s == pytest.approx(every.tensor_s / 2)
    held = (N_PARAMS + 64000) / 2
    assert head.fsdp_s == pytest.approx(1 / 2 * held * 4 / 1e11), "weights are gathered once"


def test_data_parallelism_sums_gradients_over_the_slowest_link():
    inside, outside = on(MeshConfig(), 8), on(MeshConfig(), 16)
    assert inside.data_s == pytest.approx(2 * 7 / 8 * 4 * N_PARAMS / 1e11)
    assert outside.data_s == pytest.approx(2 * 15 / 16 * 4 * N_PARAMS / 1e10)
    assert inside.compute_s == pytest.approx(2 * outside.compute_s)
    assert outside.efficiency == pytest.approx(outside.compute_s / (outside.compute_s + outside.data_s))


def test_fsdp_gathers_twice_and_scatters_once_in_every_pass():
    e = on(MeshConfig(fsdp=4), 4)
    assert e.fsdp_s == pytest.approx(3 * 3 / 4 * 4 * N_PARAMS / 1e11)
    assert e.state_mb == pytest.approx(16 * N_PARAMS / 4 / 1e6, rel=1e-3)
    assert on(MeshConfig(fsdp=4), 4, grad_accum=2).fsdp_s == pytest.approx(2 * e.fsdp_s)


def test_tensor_parallelism_sums_activations():
    e = on(MeshConfig(tensor=2), 2)
    assert e.tensor_s == pytest.approx(4 * 2 * 2 * 1 / 2 * 8192 * 64 * 2 / 1e11)


def test_a_number_of_devices_that_the_mesh_does_not_divide():
    with pytest.raises(ConfigError, match=r"^--devices: is 6, which fsdp 4 x tensor 1 does not divide"):
        on(MeshConfig(fsdp=4), 6)


def test_windows_divided_over_devices_are_refused():
    with pytest.raises(ConfigError, match=r"^mesh\.context: is not part of the estimate; leave it at 1"):
        on(MeshConfig(context=2), 8)


def test_the_table():
    text = report(CONFIG, estimate(CONFIG, CLUSTER, [1, 8]))
    assert f"{N_PARAMS:,} parameters" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["1", "8"]
