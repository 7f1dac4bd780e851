"""Windows divided over eight simulated devices (mesh.context) have the values of one, without gathered activations."""

import json

import pytest

from tests.support.processes import run_script

QUICK = ["dilated", "ngt"]
SLOW = [
    "dilated_all",
    "ngt_all",
    "ngt_one_document",
    "modern",
    "one_document",
    "window",
    "window_across",
    "alibi",
    "learned_positions",
    "sinusoidal",
    "scaled",
    "replace",
    "spectral",
    "spectral_full",
    "ngt_value_soft",
    "ngt_attractive",
    "ngt_fixed",
]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_windows_divided_over_devices_give_the_values_of_one(cases):
    found = json.loads(run_script("multi_device/context.py", *cases, devices=8).splitlines()[-1])
    assert set(found) == set(cases)
    for case, meshes in found.items():
        for mesh, result in meshes.items():
            assert result["difference"] < 1e-8, (case, mesh)
            assert result["chosen"] == ["ring"], (case, mesh)
            assert result["permutes"] > 0, (case, mesh)
            assert result["gathered"] == 0, (case, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "gravity", "splash"])
def test_attention_to_parts_of_a_window_equals_the_plain_reference(kind):
    """For any length of the parts, window, grouping, dropout and packing; for all forms of gravity."""
    run_script("multi_device/ring.py", kind, devices=8)
