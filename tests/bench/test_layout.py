"""The layout of a run on a mesh that this machine does not have, against counts by hand."""

import re
import subprocess
import sys

import pytest

from psann_jax.bench.layout import _collective_lines

CONFIG = """
from psann_jax.config.io import default_config

def get_config():
    config = default_config("transformer")
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_mlp=128, vocab_size=1024)
    config.data.max_length = 32
    config.train.update(batch_tokens=1024, precision="fp32")
    return config
"""


def show_layout(tmp_path, *flags):
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "psann_jax", "bench", "layout", f"--config={tmp_path}/config.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return re.split(r"\s{2,}", line)


def test_a_mesh_of_eight(tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    done = show_layout(tmp_path, *mesh, "--config.train.ema_decay=0.999")
    assert done.returncode == 0, done.stderr
    assert "8 x CPU" in done.stdout
    assert "mesh data 2 x fsdp 2 x context 1 x tensor 2" in done.stdout
    shape, axes, split, megabytes = row(done.stdout, "blocks.mlp.fc1.kernel")[1:]
    assert (shape, axes, split) == ("2 x 64 x 128", "layers, embed, mlp", "1: fsdp 2, 2: tensor 2")
    assert float(megabytes) == pytest.approx(2 * 64 * 128 * 4 / 4 / 1e6, abs=0.005)
    assert row(done.stdout, "embed")[2:4] == ["vocab, embed", "0: tensor 2, 1: fsdp 2"]
    assert row(done.stdout, "norm.scale")[3] == "not split"
    parameters, moments = (float(row(done.stdout, name)[1]) for name in ("parameters", "optimizer state"))
    assert moments == pytest.approx(2 * parameters, rel=0.02), "AdamW's two moments are split like their parameters"
    average = float(row(done.stdout, "average of the weights")[1])
    assert average == parameters
    assert {"all-gather", "all-reduce"} <= {line.split()[0] for line in done.stdout.splitlines() if line}
    assert not (tmp_path / "runs").exists()


def test_one_device_sends_nothing(tmp_path):
    done = show_layout(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "collectives: none" in done.stdout
    assert "not split" in row(done.stdout, "head")


def test_a_mesh_that_does_not_fit_is_one_line(tmp_path):
    done = show_layout(tmp_path, "--config.mesh.tensor=8", "--config.mesh.data=1")
    assert done.returncode == 2
    assert done.stderr == "error: mesh.tensor: is 8, which does not divide model.n_heads=4\n"


def test_collectives_are_counted_with_their_sizes():
    program = """
      %a = f32[16,4]{1,0} all-reduce(%x), replica_groups={}
      %b = (bf16[8]{0}, bf16[1024,1024]{1,0}) all-gather-start(%y), dimensions={0}
      %c = bf16[1024,1024]{1,0} all-gather-done(%b)
      %d = f32[262144]{0} all-reduce(%z)
    """
    lines = {line.split()[0]: line.split()[1:] for line in _collective_lines(program)}
    assert lines["all-reduce"] == ["2", "1.05"]
    assert lines["all-gather"] == ["1", "2.10"]
