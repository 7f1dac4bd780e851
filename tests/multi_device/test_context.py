"""Windows divided over eight simulated devices (mesh.context) have the values of one, without gathered activations."""

import json
import subprocess
import sys

import numpy as np
import pytest

from psann_jax.train.metrics import read_metrics
from tests.support.processes import environment, run_script

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
    "one_tap",
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


def command(*args, devices):
    """Runs a command on so many devices."""
    return subprocess.run(
        [sys.executable, "-m", "psann_jax", *args],
        env=environment(devices),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_on_divided_windows_is_used_on_one_device_or_on_several(tmp_path):
    run = tmp_path / "run"
    run_script("multi_device/resume.py", tmp_path, run, -1, "context=8", devices=8)
    trained = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"]
    found = {}
    for mesh, devices in {"1,1,1": 1, "1,1,1,8": 8, "2,1,2,2": 8}.items():
        done = command("evaluate", f"--workdir={run}", f"--mesh={mesh}", "--json", devices=devices)
        assert done.returncode == 0, done.stderr[-2000:]
        found[mesh] = json.loads(done.stdout)
        np.testing.assert_allclose(found[mesh]["loss"], trained[-1], rtol=1e-5)
        by_position = [[part["loss"] for part in found[name]["by_position"]] for name in (mesh, "1,1,1")]
        np.testing.assert_allclose(*by_position, rtol=1e-4)
    texts = [
        command("generate", f"--workdir={run}", f"--mesh={mesh}", "--prompt=the", "--temperature=0", devices=devices)
        for mesh, devices in {"1,1,1": 1, "2,1,2": 4}.items()
    ]
    assert [done.returncode for done in texts] == [0, 0], texts[0].stderr[-2000:]
    assert texts[0].stdout == texts[1].stdout
    refused = command("evaluate", f"--workdir={run}", "--mesh=1,1,1,3", devices=8)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == "error: data.max_length: is 32, which mesh.context=3 does not divide"
