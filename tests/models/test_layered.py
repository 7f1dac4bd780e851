"""Which layers are scanned by default."""

import dataclasses

import pytest

from psann_jax.config import DecoderConfig, SudokuConfig
from psann_jax.models import network as registry
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
