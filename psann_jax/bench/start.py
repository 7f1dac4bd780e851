"""Seconds from the start of the training command to its first step, with an empty cache and with a filled one.

The first start prepares the text and compiles; later ones find both in the cache directory, which is a temporary one.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from psann_jax.bench.config_file import write_config_file
from psann_jax.bench.turns import log
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.utils.errors import UserError

_COMPILED = re.compile(r"^compiled +in ([\d.]+) s", re.MULTILINE)


def measure(config: Config, n_starts: int) -> dict[str, Any]:
    """Starts training several times and kills it after the first step.

    Args:
      config: the experiment, with its own data; it evaluates one batch before the first step.
      n_starts: number of starts, at least 2.

    Returns:
      config and starts. A start has first_step_s, the seconds from the start of the process to the record of the first
      step, and compile_s, the seconds of these spent in compilation.

    Raises:
      UserError: the training command failed.
    """
    settings = to_dict(config)
    settings["eval"]["max_tokens"] = 1
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        settings["data"]["cache_dir"] = str(Path(folder, "cache"))
        write_config_file(settings, Path(folder))
        for i in range(n_starts):
            log(f"start {i + 1} of {n_starts}")
            starts.append(_start(Path(folder), Path(folder, f"run_{i}")))
    return {"config": to_dict(config), "starts": starts}


def _start(folder: Path, workdir: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "psann_jax.main", f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
    # Compiled programs must go into the temporary cache directory.
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
            process.kill()
            process.wait()
    compiled = _COMPILED.search((folder / "shown").read_text(encoding="utf-8"))
    return {"first_step_s": seconds, "compile_s": float(compiled[1]) if compiled else float("nan")}


def report(result: dict[str, Any]) -> str:
    """Formats the result of `measure` as a table."""
    rows = [f"{i + 1:>6}{s['first_step_s']:>16.1f}{s['compile_s']:>14.1f}" for i, s in enumerate(result["starts"])]
    return "\n".join([f"{'start':>6}{'first step s':>16}{'compile s':>14}", *rows])
