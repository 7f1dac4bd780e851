"""Checks and measures one GPU or TPU in stages, the most valuable first, for as long as there is time.

Every stage is a command of this program with its own file of results, so a stage that is done is not repeated when the
same command is given again, and one that was interrupted starts again; a training run resumes from its checkpoint.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psann_jax.bench.turns import log
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, read_json, write_json

_GRACE = 60  # seconds that a training run has to save its state
Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
      name: of its files and of its row in the report.
      command: arguments of psann-jax; "{out}" stands for the directory of results.
      show: formats its result for the report, in one cell.
      minutes: the stage does not begin with less time than this left.
      is_run: a training run, whose result is its summary; when time is up, it is asked to save its state.
    """

    name: str
    command: tuple[str, ...]
    show: Callable[[Result], str]
    minutes: float = 1.0
    is_run: bool = False


def run_stages(stages: Sequence[Stage], out: Path, minutes: float) -> Result:
    """Runs the stages that are not done yet, and writes report.md and results.json after each.

    Args:
      stages: in order of their value.
      out: the directory of results.
      minutes: time for all of them.

    Returns:
      "stages", a dict of the results by name: "status" (done, failed, stopped or waiting), "seconds", "shown" (a cell
      of the report) and, where it failed, "error", a line.
    """
    deadline = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    results: Result = {}
    for stage in stages:
        left = deadline - time.monotonic()
        result = _finished(stage, out)
        if result is None and left < 60 * stage.minutes:
            result = {"status": "waiting", "shown": "not started: no time was left"}
        if result is None:
            log(f"{stage.name} ({left / 60:.0f} minutes left) ...")
            result = _run(stage, out, left)
            log(f"{stage.name}: {result['status']}; {result['shown']}")
        results[stage.name] = result
        write_json(out / "results.json", {"stages": results})
        atomic_write(out / "report.md", report({"stages": results}))
    return {"stages": results}


def report(results: Result) -> str:
    """Formats results as a table in Markdown."""
    lines = ["| stage | result | seconds |", "|---|---|---:|"]
    for name, result in results["stages"].items():
        seconds = result.get("seconds")
        lines.append(f"| {name} | {result['shown']} | {'' if seconds is None else f'{seconds:.0f}'} |")
    return "\n".join(lines) + "\n"


def _file(stage: Stage, out: Path) -> Path:
    return out / f"{stage.name.replace('/', '_')}.json"


def _finished(stage: Stage, out: Path) -> Result | None:
    """The kept result of a stage with the same command, if it was done."""
    try:
        kept: Result = read_json(_file(stage, out))
    except UserError:  # there is none, or it is damaged
        return None
    return kept if kept.get("command") == list(stage.command) and kept["status"] == "done" else None


def _run(stage: Stage, out: Path, seconds: float) -> Result:
    """Runs the command of a stage for at most some seconds; returns and keeps its result."""
    name = stage.name.replace("/", "_")
    measured = out / f"{name}.measured.json"
    measured.unlink(missing_ok=True)
    arguments = [part.format(out=out) for part in stage.command]
    if not stage.is_run:
        arguments.append(f"--json={measured}")
    began = time.monotonic()
    with (out / f"{name}.log").open("a", encoding="utf-8") as shown:
        code = _call([sys.executable, "-m", "psann_jax", *arguments], shown, seconds, save=stage.is_run)
    workdir = next((Path(part.partition("=")[2]) for part in arguments if part.startswith("--workdir=")), None)
    result: Result = {"command": list(stage.command), "seconds": time.monotonic() - began}
    if code is None or (workdir is not None and code == 0 and not (workdir / "summary.json").exists()):
        result |= {"status": "stopped", "shown": "stopped: time was up" + _progress(workdir)}
    elif code not in (0, 1) or (workdir is None and not measured.exists()):
        result |= {"status": "failed", "error": _last_line(out / f"{name}.log")}
        result["shown"] = f"failed: {result['error']}"
    else:  # 1: a check found a fault, which is in its result
        content = read_json(measured if workdir is None else workdir / "summary.json")
        result |= {"status": "done", "result": content, "shown": stage.show(content)}
    write_json(_file(stage, out), result)
    return result


def _call(command: list[str], shown: Any, seconds: float, *, save: bool) -> int | None:
    """Runs a command; returns its exit code, or None if it had to be ended."""
    process = subprocess.Popen(command, stdout=shown, stderr=shown, start_new_session=True)
    try:
        return process.wait(max(seconds - (_GRACE if save else 0), 1))
    except subprocess.TimeoutExpired:
        if save:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()


def _progress(workdir: Path | None) -> str:
    rows = [] if workdir is None else [row for row in read_metrics(workdir / METRICS) if row["kind"] == "train"]
    return f" at step {rows[-1]['step']}, loss {rows[-1]['loss']:.3f}" if rows else ""


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return json.dumps(lines[-1][:200]) if lines else "no output"
