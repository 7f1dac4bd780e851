"""Sample texts of a run on several devices and processes are those of its checkpoint on one device."""

import json

import pytest

from psann_jax.runs.restore import load_text_run
from psann_jax.runs.samples import write_samples
from psann_jax.train.metrics import read_metrics
from tests.support.processes import run_script

MESHES = {
    "8 devices": (1, 8, "fsdp=2", "tensor=2", "sequence"),
    "2 processes": (2, 2, "tensor=2"),
    "context": (1, 8, "tensor=2", "context=2"),
}
OTHERS = [
    "modern_swiglu_tied_softcap",
    "transformer_relu_alibi",
    "waveresnet_replace",
    "sgrpsann",
    "ngt",
    "vanilla",
]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
@pytest.mark.parametrize("names", [["waveresnet_dilated"], OTHERS])
def test_sample_texts_do_not_depend_on_the_mesh(tmp_path, names, mesh):
    processes, devices, *sizes = MESHES[mesh]
    arguments = ("multi_device/sample_texts.py", tmp_path, ",".join(names), *sizes)
    run_script(*arguments, processes=processes, devices=devices)
    for name in names:
        rows = [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "samples"]
        assert [row["step"] for row in rows] == [0, 2], name
        write_samples(tmp_path / "samples.json", load_text_run(tmp_path / name))
        assert json.loads((tmp_path / "samples.json").read_text())["samples"] == rows[-1]["texts"], name
