"""Runs of YAML config files: that of the repository, and the example of psannlm, on a tiny text."""

import json

import pytest

from tests.cli.test_train import run_main
from tests.config.test_original_keys import CONFIGS, PSANNLM_SMALL
from tests.support.tiny import write_text

TINY = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.d_mlp": 32,
    "data.max_length": 32,
    "data.valid_fraction": 0.1,
    "data.tokenizer.vocab_size": 300,
    "train.steps": 2,
    "train.batch_tokens": 256,
    "train.warmup_steps": 1,
    "train.precision": "fp32",
}


@pytest.mark.parametrize("example", ["psannlm", pytest.param("repository", marks=pytest.mark.slow)])
def test_a_yaml_file_trains(example, tmp_path):
    write_text(tmp_path / "text.txt")
    path = CONFIGS / "yaml" / "waveresnet.yaml"
    overrides = {**TINY, "data.cache_dir": tmp_path / "cache"}
    if example == "psannlm":
        path = tmp_path / "waveresnet_small.yaml"
        path.write_text(PSANNLM_SMALL.replace("data/sample_texts.txt", "text.txt"))
    else:
        overrides["data.sources"] = "text.txt"
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    done = run_main(f"--config={path}", "--workdir=run", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert ("read as settings of psannlm" in done.stderr) == (example == "psannlm")
