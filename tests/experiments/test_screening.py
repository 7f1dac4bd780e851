"""bench/screening.py: its reports from records written by hand, the command on runs of a few updates."""

import csv
import json
import subprocess
import sys

import pytest

from psann_jax.config import Config, NGTConfig, RepulsionConfig, VanillaConfig
from psann_jax.config.io import to_dict
from psann_jax.experiments.screening import chosen
from psann_jax.experiments.screening_report import read_run, write_report
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS, environment
from tests.support.tiny import write_text

CONFIG = '''"""{line}

More.
"""

from psann_jax.config.io import default_config


def get_config():
    config = default_config("{base}")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16)
    config.data.update(max_length=16, sources=("{text}",), valid_sources=("{text}",))
    config.data.tokenizer.kind = "bytes"
    config.train.update(batch_tokens=64, steps=4, warmup_steps=1, precision="fp32")
    config.eval.max_tokens = 256
    return config
'''


def record(path, model, losses):
    """The files of a finished run that the report reads."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(to_dict(Config(model=model, seed=42))))
    rows = [{"kind": "eval", "step": step, "loss": loss} for step, loss in losses]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = Config().train.batch_tokens / 2.0
    summary = {"steps": losses[-1][0], "tokens": 2e6, "tokens_per_s": rate, "peak_memory_mb": 100.4, "n_params": 1234}
    (path / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    record(tmp_path / "ngt", NGTConfig(), [(0, 9.0), (5, 4.0), (10, 4.10)])
    record(tmp_path / "no_radius", NGTConfig(cutoff="none"), [(0, 9.0), (5, 4.2), (10, 4.01)])
    quiet = NGTConfig(repulsion=RepulsionConfig(weight=0.0))
    record(tmp_path / "no_repulsion", quiet, [(0, 9.0), (5, 4.3), (10, 3.5), (12, 3.4)])
    record(tmp_path / "vanilla", VanillaConfig(), [(0, 9.0), (5, 3.0), (10, 2.5)])
    return [read_run(path, f"what {path.name} is") for path in sorted(tmp_path.iterdir())]


def section(report, title):
    """Rows of the table under a heading, as lists of cells."""
    (part,) = [part for part in report.split("\n## ") if part.startswith(title)]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_tables(runs, tmp_path):
    write_report(runs, tmp_path, reference="ngt")
    report = (tmp_path / "report.md").read_text()
    assert section(report, "Fixed step") == [
        ["vanilla", "2.5000"], ["no_repulsion", "3.5000"], ["no_radius", "4.0100"], ["ngt", "4.1000"],
    ]  # fmt: skip
    assert section(report, "Best and last")[0] == ["ngt", "4.0000", "5", "4.1000", "10"]
    ranking = section(report, "Ranking")
    assert [row[6] for row in ranking] == ["vanilla", "no_repulsion", "ngt", "no_radius"]
    assert ranking[0][1:6] == ["vanilla", "default", "2.5000", "12.182", "10"]
    assert ranking[3][2] == "cutoff=none"
    assert section(report, "Throughput")[0] == ["ngt", "0.500", "2.00", "16,384", "100", "1,234"]


def test_every_run_is_compared_with_the_reference(runs, tmp_path):
    write_report(runs, tmp_path, reference="ngt")
    rows = {row[0]: row[1:] for row in section((tmp_path / "report.md").read_text(), "Ablations")}
    assert set(rows) == {"ngt and no_radius", "ngt and no_repulsion", "ngt and vanilla"}
    assert rows["ngt and no_radius"] == [
        "what no_radius is", "cutoff=none", "4.0000", "4.0100", "+0.0100", "no difference shown by one seed",
    ]  # fmt: skip
    assert rows["ngt and no_repulsion"][1] == "repulsion.weight=0.0"
    assert rows["ngt and no_repulsion"][4:] == ["-0.6000", "no_repulsion is lower, by one seed"]
    assert rows["ngt and vanilla"][1] == "another model: vanilla"


def test_results_csv_is_sorted_by_the_best_loss(runs, tmp_path):
    write_report(runs, tmp_path, reference="ngt")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["model_type"] for row in rows] == ["vanilla", "ngt", "ngt", "ngt"]
    assert rows[3] == {
        "model_type": "ngt", "dataset": "builtin:python", "hidden_dim": "512", "num_layers": "8", "num_heads": "8",
        "ablation_flags": "cutoff=none", "seed": "42", "best_val_loss": "4.010000", "total_steps": "10",
        "path": str(tmp_path / "no_radius"),
    }  # fmt: skip
    assert (tmp_path / "val_loss.png").stat().st_size > 10_000


def test_without_the_reference_there_are_no_ablations(runs, tmp_path):
    write_report(runs[1:], tmp_path, reference="ngt")
    assert "## Ablations" not in (tmp_path / "report.md").read_text()


def test_mistakes_name_the_flag(tmp_path):
    with pytest.raises(UserError, match=r"^--configs: .* holds no config files"):
        chosen(tmp_path, None)
    (tmp_path / "a.py").touch()
    with pytest.raises(UserError, match=r"^--only: .* has no b, only a"):
        chosen(tmp_path, ["b"])


def screening(tmp_path, *flags):
    command = [sys.executable, "-m", "psann_jax", "screening", f"--configs={tmp_path}/configs"]
    command += [f"--workdir={tmp_path}/out", f"--override=data.cache_dir={tmp_path}/cache", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=TESTS.parent, env=environment(), timeout=300
    )


@pytest.fixture
def configs(tmp_path):
    (tmp_path / "configs").mkdir()
    text = write_text(tmp_path / "text.txt")
    for base in ("ngt", "vanilla"):
        (tmp_path / "configs" / f"{base}.py").write_text(CONFIG.format(line=f"A {base}.", base=base, text=text))
    return tmp_path


def test_a_wrong_override_is_told_before_anything_is_trained(configs):
    done = screening(configs, "--override=train.stepz=3")
    assert done.returncode == 2
    assert "unknown key, did you mean" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (configs / "out").exists()


@pytest.mark.slow
def test_the_command_trains_all_and_goes_on_with_what_is_missing(configs):
    done = screening(configs, "--only=ngt")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs" in done.stdout
    done = screening(configs)
    assert done.returncode == 0, done.stderr
    assert "the run is complete at step 4" in done.stdout
    report = (configs / "out" / "report.md").read_text()
    assert {row[0] for row in section(report, "Fixed step")} == {"ngt", "vanilla"}
    assert "| ngt and vanilla | A vanilla. |" in report
    assert [path.name for path in (configs / "out").glob("*.html")] == ["coords_ngt.html"]
