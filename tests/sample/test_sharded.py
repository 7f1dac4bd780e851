"""Sampling on eight simulated CPU devices: every kind of parallelism gives the text of one device."""

import itertools
import json

import pytest

from tests.support.processes import run_script

# Fractions of parameters (at most) and cache that one device holds.
FRACTIONS = {"data": (1, 1 / 8), "tensor": (0.55, 1 / 4), "all": (0.5, 1 / 8)}


@pytest.fixture(scope="module", params=[("all",), pytest.param(("data", "tensor"), marks=pytest.mark.slow)])
def on_meshes(request):
    """Results on some meshes, from one process."""
    return json.loads(run_script("multi_device/sampling.py", *request.param, devices=8).splitlines()[-1])


def test_texts_equal_those_of_one_device(on_meshes):
    one = on_meshes["one"]
    for mesh, name in itertools.product(on_meshes, one):
        assert on_meshes[mesh][name]["tokens"] == one[name]["tokens"], (mesh, name)
        assert max(map(len, one[name]["tokens"])) == 30


def test_parameters_and_cache_are_divided(on_meshes):
    for mesh in FRACTIONS.keys() & on_meshes.keys():
        params, cache = FRACTIONS[mesh]
        for result in on_meshes[mesh].values():
            assert result["params"] <= params
            assert result["cache"] == cache


def test_a_second_call_does_not_recompile(on_meshes):
    assert {result["recompiled"] for results in on_meshes.values() for result in results.values()} == {0}
