"""Disturbed runs of the real command, and the uninterrupted run that they must equal."""

import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from psann_jax.train.checkpoint_format import is_complete, step_of
from psann_jax.train.metrics import read_metrics
from psann_jax.utils.checksums import find_damage
from tests.support.processes import TESTS, environment
from tests.support.tiny import write_text

# Frequent saves, so that one is almost always in progress.
CONFIG = """
from pathlib import Path
from psann_jax.config.io import default_config

HERE = Path(__file__).parent

def get_config():
    config = default_config("transformer")
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=32)
    config.data.update(sources=(str(HERE / "text.txt"),), valid_fraction=0.1, max_length=32)
    config.data.cache_dir = str(HERE / "cache")
    config.data.tokenizer.kind = "bytes"
    config.train.update(steps=60, batch_tokens=256, lr=1e-2, warmup_steps=5, precision="fp32", log_every=1)
    config.checkpoint.every = 5
    config.eval.every = 20
    return config
"""


class Experiment:
    """A config and its text in a folder, with one uninterrupted run in ``whole``."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder, self.whole = folder, folder / "whole"
        self._flags = flags
        write_text(folder / "text.txt", n_lines=1000)
        with (folder / "text.txt").open("a", encoding="utf-8") as text:
            text.write("größere Wörter, où ça, 波と石\n" * 20)
        (folder / "config.py").write_text(CONFIG)
        self.finish(self.whole)
        self.expected = losses(self.whole)

    def start(self, workdir, *flags, fault=None, **variables):
        """Starts the command, with a fault of faulty_main.py if given."""
        program = ["-m", "psann_jax.main"] if fault is None else [str(TESTS / "faults" / "faulty_main.py"), fault]
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        config = f"--config={self.folder / 'config.py'}"
        return subprocess.Popen(
            [sys.executable, "-u", *program, config, f"--workdir={workdir}", *self._flags, *flags],
            env={**environment(), "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **compiled, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=TESTS.parent,
        )

    def run(self, workdir, *flags, code=0, fault=None, **variables):
        """Runs the command and returns its stdout and stderr."""
        process = self.start(workdir, *flags, fault=fault, **variables)
        shown = "".join(process.communicate(timeout=300))
        assert process.returncode == code, shown
        return shown

    def finish(self, workdir, *flags, **variables):
        """Runs the command, which must complete the run, and returns its output."""
        shown = self.run(workdir, *flags, **variables)
        assert (workdir / "summary.json").exists()
        return shown

    def fails(self, workdir, *flags, **how):
        """Runs the command, which must end with code 2, and returns its error message, one line."""
        shown = self.run(workdir, *flags, code=2, **how)
        assert "Traceback" not in shown, shown
        assert shown.count("error:") == 1, shown
        last = shown.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    def copy(self, workdir):
        """Copies the uninterrupted run without its summary, so that it counts as incomplete."""
        shutil.copytree(self.whole, workdir)
        (workdir / "summary.json").unlink()
        return workdir

    def assert_uninterrupted(self, workdir):
        """Checks that all losses of a run, and its final state, equal those of the uninterrupted one, bit for bit."""
        assert losses(workdir) == self.expected
        if (workdir / "summary.json").exists():
            expected, found = final_state(self.whole), final_state(workdir)
            assert expected.keys() == found.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


def losses(workdir):
    """Returns the loss of every step and evaluation of a run, with the gradient norms."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row["kind"], row["step"], row["loss"], row.get("grad_norm")) for row in rows]


def recorded_step(workdir):
    """Returns the last step in a run's metrics."""
    return max((row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "train"), default=0)


def saved_steps(workdir):
    """Returns the steps of all checkpoints under their final names, and checks that they are whole and intact."""
    directory = workdir / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    found = sorted(step for step in map(step_of, names) if step is not None)
    for step in found:
        assert is_complete(directory / f"step_{step}")
        assert find_damage(directory / f"step_{step}") is None
    return found


def final_state(workdir):
    """Returns all arrays of the last checkpoint of a run."""
    path = workdir / "checkpoints" / f"step_{saved_steps(workdir)[-1]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reads the shardings from a file
        loaded = ocp.load_checkpointables(path, {"params": None, "training": None})
    return {jax.tree_util.keystr(key): np.asarray(x) for key, x in jax.tree_util.tree_leaves_with_path(loaded)}


def wait_for_step(workdir, step, process):
    """Waits until the run has recorded a step."""
    deadline = time.monotonic() + 120
    while recorded_step(workdir) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def mounted(*arguments):
    """Calls mount; skips the test if this user may not mount."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


def unmount(path):
    """Unmounts a directory."""
    subprocess.run(["umount", "--lazy", str(path)], check=True)
