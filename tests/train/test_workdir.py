"""The lock and config.json of a workdir."""

import dataclasses
import json
import subprocess
import sys

import pytest

from psann_jax.config.io import to_dict
from psann_jax.train.workdir import lock, write_config
from psann_jax.utils.errors import UserError
from tests.support.processes import environment
from tests.support.tiny import tiny_config

HOLD = """
import sys, time
from pathlib import Path
from tests.support.tiny import tiny_config
from psann_jax.train.workdir import lock
with lock(Path(sys.argv[1]) / "run", tiny_config(Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_a_killed_one_releases_the_lock(tmp_path):
    workdir, config = tmp_path / "run", tiny_config(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match=r"run: another process is training in this workdir$"):
                lock(workdir, config).__enter__()
        finally:
            process.kill()
    with lock(workdir, config):
        pass


def test_the_lock_is_released_after_an_error(tmp_path):
    workdir, config = tmp_path / "run", tiny_config(tmp_path)
    with lock(workdir, config):
        write_config(workdir, config)
    (workdir / "checkpoints" / "step_0").mkdir(parents=True)
    another = dataclasses.replace(config, seed=config.seed + 1)
    with pytest.raises(UserError, match=r"holds another run: seed is 1337 there and 1338 here"):
        lock(workdir, another).__enter__()
    with lock(workdir, config):
        assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(to_dict(config)))


def test_a_workdir_with_results_but_without_config_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step_5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
        lock(tmp_path / "run", tiny_config(tmp_path)).__enter__()


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_without_results_any_config_may_start(tmp_path, content):
    """Left by a start that failed, or was killed before its first step."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "step_0.orbax-checkpoint-tmp").mkdir(parents=True)
    (workdir / "metrics.jsonl").touch()
    if content:
        (workdir / "config.json").write_text(content)
    with lock(workdir, tiny_config(tmp_path)):
        pass
    (workdir / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"config\.json|holds another run"):
        lock(workdir, tiny_config(tmp_path)).__enter__()


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*: cannot be written: Not a directory"):
        lock(tmp_path / "file" / "run", tiny_config(tmp_path)).__enter__()


def test_a_run_older_than_a_setting_had_its_default(tmp_path):
    workdir, config = tmp_path / "run", tiny_config(tmp_path)
    with lock(workdir, config):
        write_config(workdir, config)
    (workdir / "checkpoints" / "step_0").mkdir(parents=True)
    saved = json.loads((workdir / "config.json").read_text())
    del saved["train"]["lr_scales"]
    (workdir / "config.json").write_text(json.dumps(saved))
    with lock(workdir, config):
        pass
    with pytest.raises(UserError, match=r"another run: train\.lr_scales\.sine is 1\.0 there and 9\.0 here"):
        lock(workdir, tiny_config(tmp_path, train__lr_scales__sine=9.0)).__enter__()
