"""A sweep in a bucket: killed and continued on another machine, it repeats no finished run."""

import shutil
import subprocess
import sys
import time

import pytest

from tests.support.bucket import bucket_at, s3_bucket
from tests.support.processes import TESTS, environment
from tests.support.tiny import sentences

SWEEP = """
from psann_jax.config.io import default_config
from psann_jax.experiments.sweeps import sweep_config

def get_config():
    common = default_config("transformer")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    common.data.update(sources=("SOURCE",), max_length=32, valid_fraction=0.1)
    common.data.tokenizer.kind = "bytes"
    common.train.update(steps=30, batch_tokens=256, warmup_steps=5, precision="fp32")
    return sweep_config(common, {"transformer": {"model.base": "transformer"}}, seeds=(1, 2))
"""


@pytest.mark.slow
def test_a_killed_sweep_continues_on_another_machine(tmp_path):
    with s3_bucket() as server:
        bucket_at(server).write("text.txt", "\n".join(sentences(400)).encode())
        (tmp_path / "sweep.py").write_text(SWEEP.replace("SOURCE", f"{server}/text.txt"))
        url, cache = f"{server}/sweep", tmp_path / "cache"
        command = [sys.executable, "-m", "psann_jax", "sweep", f"--config={tmp_path / 'sweep.py'}", f"--workdir={url}"]
        variables = environment() | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(command, env=variables, cwd=TESTS.parent, start_new_session=True)
        deadline = time.monotonic() + 300
        while "runs/transformer_seed1/summary.json" not in bucket_at(url).files():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)  # the sweep and its run
        process.wait()
        shutil.rmtree(cache / "psann_jax" / "buckets")
        first = bucket_at(url).read("runs/transformer_seed1/metrics.jsonl")
        bucket_at(url).delete([".lease.json"])
        subprocess.run(command, env=variables, cwd=TESTS.parent, check=True, timeout=600)
        found = bucket_at(url).files()
        assert bucket_at(url).read("runs/transformer_seed1/metrics.jsonl") == first
        for name in ("report.html", "report.md", "results.csv", "summary.json"):
            assert found[name]["size"] > 0
        for seed in (1, 2):
            assert {f"runs/transformer_seed{seed}/{name}" for name in ("summary.json", "samples.json")} <= found.keys()
        assert b"transformer" in bucket_at(url).read("results.csv")
