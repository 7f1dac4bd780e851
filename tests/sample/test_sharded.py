"""Sampling on eight simulated CPU devices: every kind of parallelism gives the text of one device."""

import json

import pytest

from tests.support.processes import run_script


@pytest.fixture(scope="module")
def on_meshes():
    """Results on every mesh, from one process."""
    return json.loads(run_script("multi_device/sampling.py", devices=8).splitlines()[-1])


@pytest.mark.parametrize("mesh", ["data", "tensor", "all"])
def test_texts_equal_those_of_one_device(on_meshes, mesh):
    for name, one in on_meshes["one"].items():
        assert on_meshes[mesh][name]["tokens"] == one["tokens"], name
        assert max(map(len, one["tokens"])) == 30


@pytest.mark.parametrize(
    ("mesh", "params", "cache"),
    [("data", 1, 1 / 8), ("tensor", 0.55, 1 / 4), ("all", 0.5, 1 / 8)],
)
def test_parameters_and_cache_are_divided(on_meshes, mesh, params, cache):
    for result in on_meshes[mesh].values():
        assert result["params"] <= params
        assert result["cache"] == cache


def test_a_second_call_does_not_recompile(on_meshes):
    assert {result["recompiled"] for results in on_meshes.values() for result in results.values()} == {0}
