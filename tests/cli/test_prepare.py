"""The command that prepares a text ahead of training."""

import os
import signal
import subprocess
import sys
import time

import pytest

from psann_jax.cli import prepare as command
from psann_jax.config.families import family
from psann_jax.data import preparation
from tests.support.processes import TESTS, environment
from tests.support.tiny import write_text

CONFIG = """
from psann_jax.config.io import default_config
def get_config():
    config = default_config("waveresnet")
    config.data.update(sources=("{text}",), valid_fraction=0.1, max_length=32, cache_dir="{cache}")
    config.data.tokenizer.kind = "bytes"
    config.train.batch_tokens = 256
    return config
"""


@pytest.fixture
def config(tmp_path):
    write_text(tmp_path / "text.txt")
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(text=tmp_path / "text.txt", cache=tmp_path / "cache"))
    return path


def shards(tmp_path, cache="cache") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / cache).glob("shards-*/*")}


def test_training_finds_what_the_command_has_prepared(tmp_path, config, monkeypatch, capsys):
    command.main([f"--config={config}"])
    assert "training " in capsys.readouterr().out
    monkeypatch.setattr(preparation, "prepare_piece", lambda *args: pytest.fail("tokenised again"))
    command.main([f"--config={config}"])
    from psann_jax.cli.flags import ConfigParser, read_config

    loaded = read_config(ConfigParser("train", "").parse_strictly([f"--config={config}"]))
    assert family(loaded.model.base).get("task").load(loaded, progress=False).data.n_train_tokens > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs=0"], "--jobs: is '0', must be a whole number of at least 1"),
        (["--address=a:1"], "--address: has no effect without --engine=ray"),
        (["--engine=ray", "--jobs=2"], "--jobs: has no effect with --engine=ray; set --cpus_per_piece"),
        (["--engine=ray"], "--engine: must be local with builtin:python"),
        (["--job=2"], "--job: unknown argument, did you mean --jobs?"),
        (["--config={configs}/sudoku/quickstart.py"], "--config: an experiment of base sudoku has no text to prepare"),
        (["--config.data.sources=/nowhere.txt"], "there is no file '/nowhere.txt'"),
    ],
)
def test_errors_are_one_line(tmp_path, flags, message):
    configs = TESTS.parent / "configs"
    flags = [flag.format(configs=configs) for flag in flags]
    done = start(f"--config={configs}/quickstart.py", *flags, cwd=tmp_path)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 2
    assert len(err.splitlines()) == 1
    assert message in err


def start(*flags, cwd, program=("-m", "psann_jax", "prepare")) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, *flags],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


SMALL = """
import sys
from psann_jax.data import preparation
preparation.PIECE_BYTES = 500
if __name__ == "__main__":
    from psann_jax.cli.program import run_program
    run_program(["prepare", *sys.argv[1:]])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_an_interrupted_preparation_with_several_processes_is_continued(tmp_path, config, how, default_signals):
    (tmp_path / "small.py").write_text(SMALL)
    program = (str(tmp_path / "small.py"),)
    done = start(f"--config={config}", f"--config.data.cache_dir={tmp_path}/whole", cwd=tmp_path, program=program)
    assert done.wait(60) == 0
    process = start(f"--config={config}", "--jobs=2", cwd=tmp_path, program=program)
    deadline = time.monotonic() + 60
    while not shards(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    _, err = process.communicate(timeout=30)  # the pipe closes when all processes have ended
    if process.returncode:  # else it was already done
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        if how == signal.SIGINT:
            assert err.splitlines()[-1] == "interrupted"
            assert "Traceback" not in err
    before = shards(tmp_path)
    done = start(f"--config={config}", "--jobs=2", cwd=tmp_path, program=program)
    assert done.wait(60) == 0
    after = shards(tmp_path)
    assert {name for name in before if name.endswith(".shard")} <= after.keys()
    assert after == shards(tmp_path, "whole")
