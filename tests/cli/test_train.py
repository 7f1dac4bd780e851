"""The training command: an error in a flag or setting is one line with exit code 2, and nothing is written."""

import subprocess
import sys

import pytest

from tests.support.processes import TESTS, environment
from tests.support.tiny import write_text

ERRORS = {
    "--config.train.lrr=1": "--config.train.lrr: unknown key, did you mean train.lr?",
    "--config.model.base=wavresnet": "model.base: unknown base 'wavresnet', did you mean waveresnet?",
    "--config.train.lr=-1": "train.lr: is -1.0, must be positive",
    "--config.train.steps=many": "--config.train.steps: is 'many', must be a whole number",
    "--learning_rate=1": "--learning_rate: unknown argument, did you mean --config.train.lr?",
    "--config.train.batch_tokens=100": "train.batch_tokens: is 100, smaller than one window",
    "--config.model.d_model=130": "model.d_model: is 130, must be divisible by model.n_heads=4",
    "--config.model.n_heads=128": "model.positional_encoding: rope needs an even head size",
    "--config.mesh.data=3": "mesh.data: is 3, but there is 1 device (cpu)",
    "--config.data.sources=/nowhere/text.txt": "/nowhere/text.txt",
    "--confg=x": "confg",
    "--stop_code=256": "--stop_code: is '256', must be a whole number from 0 to 255",
}


def run_main(*flags, cwd):
    command = [sys.executable, "-m", "psann_jax.main", *flags]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("flag", ERRORS)
def test_an_error_is_one_line_and_code_2(flag, tmp_path):
    done = run_main(
        f"--config={TESTS.parent}/configs/quickstart.py", f"--workdir={tmp_path / 'run'}", flag, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert ERRORS[flag] in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such config file"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config():\n    return undefined", "NameError"),
    ],
)
def test_a_broken_config_file_is_named(content, message, tmp_path):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    done = run_main(f"--config={path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unwritable_workdir_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    flags = (f"--config={TESTS.parent}/configs/quickstart.py", f"--workdir={tmp_path / 'file' / 'run'}")
    done = run_main(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_print_config_shows_overrides(tmp_path):
    flags = (f"--config={TESTS.parent}/configs/quickstart.py", "--config.train.lr=0.125", "--print_config")
    done = run_main(*flags, cwd=tmp_path)
    assert done.returncode == 0
    assert "train.lr=0.125\n" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_text_of_a_few_lines_is_too_short(tmp_path):
    text = write_text(tmp_path / "short.txt", n_lines=3)
    flags = ("--config.data.tokenizer.kind=bytes", "--config.data.tokenizer.vocab_size=32000")
    done = run_main(
        f"--config={TESTS.parent}/configs/quickstart.py",
        f"--config.data.sources={text}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        *flags,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # after the progress of reading and tokenising
    assert last.startswith("error: data.max_length: is 256, but the training text")
