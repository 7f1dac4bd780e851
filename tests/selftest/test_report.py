"""The files of a self-test."""

import csv
import json
import math

import matplotlib.image
import pytest

from psann_jax.selftest import report

SYSTEM = {"device": "1 x CPU", "python": "3.11", "packages": {"psann_jax": "0", "jax": "1"}}


def summary(*results):
    return {"timestamp_utc": "2026-01-02T03:04:05+00:00", "system": SYSTEM, "results": list(results)}


def record(name, measured, status="passed", **more):
    return {"id": name, "title": "t", "status": status, "threshold": {}, "measured": measured, "seconds": 1.0, **more}


def test_report_files(tmp_path):
    entry = dict.fromkeys(report._MEMORY_FIELDS, 1) | {"losses": [1.0]}
    ratios = {"compiler_memory_mb": 0.5, "step_s": 1.2}
    rates = [
        {"base": "a", "batch_tokens": 8, "tokens_per_s": 1234.5},
        {"base": "a", "batch_tokens": 16, "tokens_per_s": 2},
    ]
    content = summary(
        record("GPU-03", {"entries": rates}),
        record("GPU-04", {"entries": [entry, entry], "with_over_without": ratios, "loss_difference": math.nan}),
        record("GPU-05", {}, status="skipped", reason="needs 2 devices"),
    )
    report.write_report(tmp_path, content)
    names = {"summary.json", "throughput.csv", "throughput.png", "memory.json", "README.md"}
    assert {p.name for p in tmp_path.iterdir()} == names
    rows = list(csv.reader((tmp_path / "throughput.csv").open()))
    assert rows[0] == ["timestamp", "base", "batch_tokens", "tokens_per_s"]
    assert rows[1] == ["2026-01-02T03:04:05+00:00", "a", "8", "1234.5"]
    assert matplotlib.image.imread(tmp_path / "throughput.png").std() > 0.05
    memory = json.loads((tmp_path / "memory.json").read_text())
    plan = {"base", "d_model", "n_layers", "grad_checkpoint", "amp", "max_memory_mb", "elapsed_s"}
    assert len(memory) == 2
    assert plan < memory[0].keys()
    saved = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert saved["results"][1]["measured"]["loss_difference"] == "nan"
    text = (tmp_path / "README.md").read_text()
    assert "| a | 1,234 | 2 |" in text
    assert "needs 2 devices" in text
