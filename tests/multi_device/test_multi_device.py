"""Eight forced CPU devices: every kind of parallelism gives the losses of one device; resuming on fewer devices."""

import json

import numpy as np
import pytest

from psann_jax.train.metrics import read_metrics
from tests.support.processes import run_script

TEXT = ("text", "all", "context_and_all")
MORE_TEXT = ("text", "data", "fsdp", "tensor", "context")
SUDOKU = ("sudoku", "data", "fsdp", "tensor", "all")


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory, request):
    """Results on some meshes, from one process."""
    kind, *meshes = request.param
    folder = tmp_path_factory.mktemp("meshes")
    return json.loads(run_script("multi_device/meshes.py", kind, folder, *meshes, devices=8).splitlines()[-1])


KINDS = pytest.mark.parametrize(
    "on_meshes",
    [TEXT, *(pytest.param(given, marks=pytest.mark.slow) for given in (MORE_TEXT, SUDOKU))],
    indirect=True,
    scope="module",
    ids=["text", "more_text", "sudoku"],
)


@KINDS
def test_losses_and_gradients_equal_those_of_one_device(on_meshes):
    for mesh in on_meshes:
        equal_to_one(on_meshes, mesh)


def equal_to_one(on_meshes, mesh):
    np.testing.assert_allclose(on_meshes[mesh]["losses"], on_meshes["one"]["losses"], rtol=2e-5)
    assert on_meshes[mesh]["difference"] < 2e-5
    for kind, parts in on_meshes["one"]["parts"].items():
        for (name, loss, stderr, tokens), expected in zip(on_meshes[mesh]["parts"][kind], parts, strict=True):
            assert [name, tokens] == [expected[0], expected[3]]
            np.testing.assert_allclose(loss, expected[1], rtol=2e-5)
            np.testing.assert_allclose(stderr, expected[2], rtol=1e-3)  # of differences between nearly equal losses


@KINDS
def test_parameters_and_their_moments_are_sharded_alike(on_meshes):
    most = {"fsdp": 0.2, "tensor": 0.25, "all": 0.4}
    for mesh in most.keys() & on_meshes.keys():
        assert on_meshes[mesh]["moments"] > 20
        assert on_meshes[mesh]["moments_match"]
        assert on_meshes[mesh]["held"] < most[mesh]


def test_given_parameters_are_placed_on_a_mesh():
    for kind, found in json.loads(run_script("multi_device/initial_params.py", devices=8).splitlines()[-1]).items():
        assert found == {"equal": True, "sharded": True, "split": True}, kind


def test_weights_of_another_run_are_moved_on_a_mesh():
    found = json.loads(run_script("multi_device/start.py", devices=8).splitlines()[-1])
    assert found["sharded"]
    assert found["difference"] < 1e-6


def test_the_gradient_of_a_sharded_embedding_is_summed_in_float32():
    for vocab, found in json.loads(run_script("multi_device/embedding.py", devices=8).splitlines()[-1]).items():
        assert found["equal"], vocab
        assert found["error"] < 1e-6, vocab
        assert found["communicated"] <= 1, vocab


@pytest.mark.slow
@pytest.mark.parametrize("name", ["waveresnet_interleave_window"])
def test_grouped_heads_and_sliding_windows_give_the_values_of_one_device(name):
    found = json.loads(run_script("multi_device/grouped.py", name, devices=8).splitlines()[-1])[name]
    assert found.keys() == {"tensor", "fsdp", "all"}
    assert max(found.values()) < 1e-8


OTHERS = [
    "modern_swiglu_tied_softcap",
    "transformer_relu_alibi",
    "waveresnet_replace",
    "sgrpsann",
    "sgrpsann_fourier_full",
    "ngt",
    "vanilla",
]


@pytest.mark.slow
@pytest.mark.parametrize("names", [["waveresnet_dilated"], OTHERS])
def test_activations_split_along_the_window_give_the_same_values_in_less_memory(names):
    for name, found in json.loads(run_script("multi_device/sequence.py", *names, devices=8).splitlines()[-1]).items():
        assert found["difference"] < 1e-8, name
        plain, split = found["bytes"]
        assert split < 0.75 * plain, name


# 8 does not divide the vocabulary of 260 bytes, but 1 and 2 do.
@pytest.mark.slow
@pytest.mark.parametrize("axis", ["fsdp", "tensor", "context"])
def test_resume_on_fewer_devices_continues_the_same_run(tmp_path, axis):
    losses = {}
    for name, stages in {"whole": [(1, -1)], "moved": [(8, 3), (2, 5), (1, -1)]}.items():
        for devices, stop in stages:
            mesh = f"{axis}={devices}"
            run_script("multi_device/resume.py", tmp_path, tmp_path / name, stop, mesh, devices=devices)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = {(r["kind"], r["step"]): r["loss"] for r in rows}
    assert losses["moved"].keys() == losses["whole"].keys()
    for at, loss in losses["whole"].items():
        np.testing.assert_allclose(losses["moved"][at], loss, rtol=2e-5, err_msg=str(at))
