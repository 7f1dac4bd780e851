"""The measurement of generation: what is timed and what is reported."""

import json
import subprocess
import sys

import pytest

from psann_jax.bench import generate, our_sampler
from psann_jax.cli.bench import generate as generate_command
from psann_jax.config import Config, DataConfig, DecoderConfig, TrainConfig
from psann_jax.data.random_text import random_prompts
from psann_jax.sample.settings import Sampling
from psann_jax.utils.errors import UserError

TINY = Config(
    model=DecoderConfig(base="waveresnet", vocab_size=50, d_model=16, n_layers=2, n_heads=2, d_mlp=32),
    data=DataConfig(max_length=16),
    train=TrainConfig(batch_tokens=64, precision="fp32", warmup_steps=0),
)


def test_a_generation_is_timed_in_parts():
    contender = our_sampler.make(TINY, 5, 80, Sampling(top_p=0.9))
    for generation in contender.run(2, 3):
        assert 0 < generation["first_s"] < generation["seconds"]
        # Any row may sample the id that ends a text.
        assert 3 <= generation["tokens"] <= 3 * 80
        assert generation["steps"] <= 79
        assert len(generation["steps_s"]) == generation["steps"] // 32
        assert sum(generation["steps_s"]) * 32 < generation["seconds"]


def test_prompts_have_the_requested_shape_and_differ():
    one, other = (random_prompts(TINY, seed, 3, 5) for seed in (0, 1))
    assert [len(row) for row in one] == [5, 5, 5]
    assert all(0 <= i < 50 for row in one for i in row)
    assert one != other


def test_results_are_medians_and_the_fastest_rival_counts():
    def generation(seconds, first_s=0.1):
        return {"tokens": 20, "seconds": seconds, "first_s": first_s, "steps": 9, "steps_s": [seconds / 10]}

    rounds = [
        [[generation(1.0)], [generation(4.0)], [generation(2.0)]],
        [[generation(9.1)], [generation(4.0)], [generation(2.0)]],
        [[generation(1.0)], [generation(4.0)], [generation(0.2)]],
    ]
    result = generate._result(2, ["ours", "slow", "fast"], rounds)
    assert result["batch"] == 2
    assert [f["tokens_per_s"] for f in result["contenders"]] == [20.0, 5.0, 10.0]
    assert result["peer_tokens_per_s"] == 10.0
    assert result["ratio"] == 2.0
    assert result["contenders"][0]["step_s"] == pytest.approx(0.1)
    assert result["contenders"][0]["steps_s"] == [0.1]
    alone = generate._result(2, ["ours"], [[blocks[0]] for blocks in rounds])
    assert alone["ratio"] is None


CONFIG_FILE = """
from psann_jax.config.io import default_config

def get_config():
    config = default_config("respsann")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=32, vocab_size=50)
    config.data.max_length = 16
    config.train.precision = "bf16"
    return config
"""


def run(tmp_path, *arguments):
    (tmp_path / "tiny.py").write_text(CONFIG_FILE)
    command = [sys.executable, "-m", "psann_jax", "bench", "generate", f"--config={tmp_path}/tiny.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_the_command(tmp_path):
    out = tmp_path / "result.json"
    flags = ["--batch=2", "--batch=3", "--prompt_tokens=4", "--max_new_tokens=40", "--repeats=2"]
    done = run(tmp_path, *flags, "--temperature=0", f"--json={out}")
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [r["batch"] for r in result["results"]] == [2, 3]
    assert result["tokens_per_s"] == result["results"][1]["contenders"][0]["tokens_per_s"], "the largest batch"
    assert result["ratio"] is None
    assert result["config"]["train"]["precision"] == "bf16"
    assert result["sampling"]["temperature"] == 0
    assert "greedy" in done.stdout
    assert "respsann" in done.stdout
    assert "round 2 of 2" in done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--top_p=0", "top_p: is 0.0"),
        ("--batch=0", "--batch: is '0', must be a whole number of at least 1"),
        ("--prompt_tokens=17", "--prompt_tokens: is 17, but data.max_length is 16"),
        ("--temperature=-1", "temperature: is -1.0"),
        ("--json=/nowhere/x.json", "--json: /nowhere/x.json: there is no directory"),
    ],
)
def test_errors_are_one_line_and_code_2(tmp_path, flag, message, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG_FILE)
    with pytest.raises((SystemExit, UserError)) as ended:
        generate_command.main([f"--config={tmp_path}/tiny.py", flag])
    error = str(ended.value) if ended.type is not SystemExit else capsys.readouterr().err.removeprefix("error: ")
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


def test_without_a_config_the_proxy_is_measured(tmp_path, monkeypatch):
    """Outside the project's directory that file is missing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^configs/proxy_13m\.py: there is no such config file"):
        generate_command.main([])


def test_a_missing_psannlm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psannlm", None)
    with pytest.raises(UserError, match=r"needs .*psannlm; pip install"):
        generate.measure(TINY, Sampling(top_p=1.0), peer_name="psannlm", prompt_tokens=4)
