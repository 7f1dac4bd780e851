"""The measurement of the server: what is timed and what is reported."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from psann_jax.bench import our_server, served
from psann_jax.sample.settings import Sampling
from tests.bench.test_generate import CONFIG_FILE, TINY


def test_requests_of_all_clients_are_timed():
    contender = our_server.make(TINY, 2, 5, 8, Sampling(top_p=0.9))
    for turn in contender.run(2, 3):
        assert 3 <= turn["tokens"] <= 3 * 8
        assert 0 < turn["latency_s"] <= turn["seconds"]
    assert contender.run(1, 3)[0]["tokens"] == contender.run(1, 3)[0]["tokens"], "the same prompts and seeds"


def test_figures_are_medians():
    turns = [{"tokens": 20, "seconds": s, "latency_s": s / 2} for s in (1.0, 4.0, 2.0)]
    assert served._figures("ours", turns) == {"name": "ours", "tokens_per_s": 10.0, "latency_s": 1.0}
    assert served._figures("peer", [{"tokens": 20, "seconds": 2.0}])["latency_s"] == 2.0, "one request at a time"


def test_the_command(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG_FILE)
    out = tmp_path / "result.json"
    flags = ("--clients=1", "--clients=3", "--slots=2", "--prompt_tokens=4", "--max_new_tokens=14", "--repeats=1")
    command = [sys.executable, "-m", "psann_jax", "bench", "serve", f"--config={tmp_path}/tiny.py", *flags]
    done = subprocess.run([*command, f"--json={out}"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [r["clients"] for r in result["results"]] == [1, 3]
    assert all(r["contenders"][0]["tokens_per_s"] > 0 for r in result["results"])
    assert result["slots"] == 2
    assert "seconds per request" in done.stdout
