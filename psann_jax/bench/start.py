"""Seconds from the start of the training command to its first step: the first time, and once more.

The first start prepares the text and compiles; the second finds both in the cache directory, which is a new one.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from psann_jax.bench.arguments import CONFIG, JSON
from psann_jax.bench.config_file import write_config_file
from psann_jax.bench.results import check_writable, write_result
from psann_jax.bench.turns import say
from psann_jax.config import Config
from psann_jax.config.io import parse, to_dict
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.utils.errors import UserError

_STARTS = flags.DEFINE_integer("starts", 2, "How often to start.", lower_bound=2)

_COMPILED = re.compile(r"^compiled +in ([\d.]+) s", re.MULTILINE)


def main() -> None:
    """Measures the config of the flags, prints a table and writes the JSON file."""
    if JSON.value:
        check_writable(Path(JSON.value))
    result = measure(parse(CONFIG.value), _STARTS.value)
    print(report(result))
    if JSON.value:
        write_result(Path(JSON.value), result)


def measure(config: Config, n_starts: int) -> dict[str, Any]:
    """Starts the training of a config and ends it after its first step, several times.

    Args:
      config: the experiment; it keeps its text, and evaluates one batch before the first step.
      n_starts: at least 2.

    Returns:
      config; and starts, of each: first_step_s, seconds from the start of the process to the record of the first step;
      compile_s, the seconds of compilation among them.

    Raises:
      UserError: the command did.
    """
    settings = to_dict(config)
    settings["eval"]["max_tokens"] = 1
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        settings["data"]["cache_dir"] = str(Path(folder, "cache"))
        write_config_file(settings, Path(folder))
        for i in range(n_starts):
            say(f"start {i + 1} of {n_starts}")
            starts.append(_start(Path(folder), Path(folder, f"run_{i}")))
    return {"config": to_dict(config), "starts": starts}


def _start(folder: Path, workdir: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "psann_jax.main", f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
    # Programs are to be found where the command itself leaves them.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with (folder / "shown").open("w+", encoding="utf-8") as shown:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=shown, stderr=shown)
        try:
            while not any(row["kind"] == "train" for row in read_metrics(workdir / METRICS)):
                if process.poll() is not None:
                    raise UserError((folder / "shown").read_text(encoding="utf-8").strip().split("error: ")[-1])
                time.sleep(0.02)
            seconds = time.perf_counter() - began
        finally:
            process.kill()  # it has nothing to lose
            process.wait()
    compiled = _COMPILED.search((folder / "shown").read_text(encoding="utf-8"))
    return {"first_step_s": seconds, "compile_s": float(compiled[1]) if compiled else float("nan")}


def report(result: dict[str, Any]) -> str:
    """The result of `measure` as a table."""
    rows = [f"{i + 1:>6}{s['first_step_s']:>16.1f}{s['compile_s']:>14.1f}" for i, s in enumerate(result["starts"])]
    return "\n".join([f"{'start':>6}{'first step s':>16}{'compiling s':>14}", *rows])
