"""Which layers are scanned by default, and which kernels the inspection of a network uses."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from psann_jax.config import DecoderConfig, NGTConfig, SudokuConfig
from psann_jax.models import network as registry
from psann_jax.models.ngt import NGT
from psann_jax.ops import kernels
from tests.support.devices import pretend

TINY = DecoderConfig(base="transformer", d_model=16, n_layers=4, n_heads=2, d_mlp=32, vocab_size=11)


def scans(monkeypatch, platform, config=TINY, **options):
    pretend(monkeypatch, platform)
    network = registry.build(config, **options)
    return network.scans_layers()


@pytest.mark.parametrize(("platform", "n_layers", "expected"), [
    ("cpu", 4, True), ("gpu", 4, False), ("gpu", 48, False), ("tpu", 8, False), ("tpu", 9, True),
])  # fmt: skip
def test_layers_are_unrolled_by_device_and_number(platform, n_layers, expected, monkeypatch):
    assert scans(monkeypatch, platform, dataclasses.replace(TINY, n_layers=n_layers)) == expected


def test_the_setting_comes_first(monkeypatch):
    assert scans(monkeypatch, "gpu", scan_layers=True)
    assert not scans(monkeypatch, "cpu", scan_layers=False)


def test_full_rematerialisation_runs_groups_of_layers_as_a_loop(monkeypatch):
    assert scans(monkeypatch, "gpu", remat="full")
    assert not scans(monkeypatch, "gpu", remat="block")


def test_sudoku_is_unrolled_on_gpus_only(monkeypatch):
    assert [scans(monkeypatch, platform, SudokuConfig()) for platform in ("cpu", "gpu", "tpu")] == [True, False, True]


@pytest.mark.parametrize(
    ("config", "operation", "fast", "plain"),
    [
        (SudokuConfig(d_model=64, n_layers=1, n_heads=2, d_mlp=64), "full_attention", "triton", "plain"),
        (NGTConfig(vocab_size=8, d_model=32, n_layers=1, n_heads=2, n_positions=16), "gravity", "pallas", "tiled"),
    ],
)
def test_inspection_uses_the_kernels_of_the_config(config, operation, fast, plain, monkeypatch):
    pretend(monkeypatch, "gpu")

    def inspect(model):
        if isinstance(model, NGT):
            return model.inspect(jnp.zeros((2, 16), jnp.int32))
        return model.attention(model.start(jnp.zeros((2, 81), jnp.int32)))

    for setting, expected in (("auto", fast), ("plain", plain)):
        network = registry.build(dataclasses.replace(config, kernels=setting), dtype=jnp.bfloat16)
        with kernels.recorded() as found:
            jax.eval_shape(lambda params, network=network: inspect(network.merge(params)), network.abstract)
        assert found[operation] == {expected}
