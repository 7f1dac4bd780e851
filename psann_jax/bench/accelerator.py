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
from threading import Event
from typing import Any

from psann_jax.bench.turns import log
from psann_jax.engines.stop import Stop
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import atomic_write, read_json, storage_errors, write_json

_GRACE = 60  # seconds that a training run has to save its state
_POLL_S = 0.2
_NOT_STARTED = "not started"
Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
      name: of its files and of its row in the report.
      command: arguments of psann-jax; "{out}" stands for the directory of results, "{time}" for the time of the start.
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

    SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C ends the stage in progress, a training run with its state saved, and then this
    process.

    Args:
      stages: in order of their value.
      out: the directory of results.
      minutes: time for all of them.

    Returns:
      "stages", a dict of the results by name: "status" (done, failed, stopped or waiting), "seconds", "shown" (a cell
      of the report) and, where it failed, "error", a line.

    Raises:
      UserError: the directory cannot be written.
    """
    deadline = time.monotonic() + 60 * minutes
    with storage_errors(out, hint="choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    # Also the results of earlier starts that this one may not reach.
    results = {stage.name: _kept(stage, out) or {"status": "waiting", "shown": _NOT_STARTED} for stage in stages}
    with Stop("the stage to end") as stop:
        _write(results, out)
        for stage in stages:
            left, result = deadline - time.monotonic(), results[stage.name]
            if result["status"] == "done" or stop.requested.is_set():
                continue
            if left >= 60 * stage.minutes:
                log(f"{stage.name} ({left / 60:.0f} minutes left) ...")
                results[stage.name] = result = _run(stage, out, left, stop.requested)
                log(f"{stage.name}: {result['status']}; {result['shown']}")
            elif result["status"] == "waiting":
                result["shown"] = f"{_NOT_STARTED}: no time was left"
            _write(results, out)
    stop.end()
    return {"stages": results}


def _write(results: Result, out: Path) -> None:
    write_json(out / "results.json", {"stages": results})
    with storage_errors(out):
        atomic_write(out / "report.md", report({"stages": results}))


def report(results: Result) -> str:
    """Formats results as a table in Markdown."""
    lines = ["| stage | result | seconds |", "|---|---|---:|"]
    for name, result in results["stages"].items():
        seconds = result.get("seconds")
        lines.append(f"| {name} | {result['shown']} | {'' if seconds is None else f'{seconds:.0f}'} |")
    return "\n".join(lines) + "\n"


def _file(stage: Stage, out: Path) -> Path:
    return out / f"{stage.name.replace('/', '_')}.json"


def _kept(stage: Stage, out: Path) -> Result | None:
    """The kept result of a stage with the same command, done or not."""
    try:
        kept: Result = read_json(_file(stage, out))
    except UserError:  # there is none, or it is damaged
        return None
    is_whole = {"status", "shown"} <= kept.keys()
    return kept if is_whole and kept.get("command") == list(stage.command) else None


def _run(stage: Stage, out: Path, seconds: float, stopping: Event) -> Result:
    """Runs the command of a stage for at most some seconds; returns and keeps its result."""
    name = stage.name.replace("/", "_")
    measured, log_file = out / f"{name}.measured.json", out / f"{name}.log"
    with storage_errors(out):
        measured.unlink(missing_ok=True)
        shown = log_file.open("a", encoding="utf-8")
    arguments = [part.format(out=out, time=time.strftime("%Y%m%d_%H%M%S")) for part in stage.command]
    if not stage.is_run:
        arguments.append(f"--json={measured}")
    began = time.monotonic()
    with shown:
        command = [sys.executable, "-m", "psann_jax", *arguments]
        code = _call(command, shown, seconds, save=stage.is_run, stopping=stopping)
    workdir = next((Path(part.partition("=")[2]) for part in arguments if part.startswith("--workdir=")), None)
    file = measured if workdir is None else workdir / "summary.json"
    result: Result = {"command": list(stage.command), "seconds": time.monotonic() - began}
    if code is None or (stage.is_run and code == 0 and not file.exists()):
        why = "the command was interrupted" if stopping.is_set() else "time was up"
        result |= {"status": "stopped", "shown": f"stopped: {why}{_progress(workdir)}"}
    # 1 from a measurement: it found a fault, which is in its result. From a run: an unforeseen error.
    elif code not in ((0,) if stage.is_run else (0, 1)) or not file.exists():
        result |= {"status": "failed", "error": _last_line(log_file)}
        result["shown"] = f"failed: {result['error']}"
    else:
        content = read_json(file)
        result |= {"status": "done", "result": content, "shown": stage.show(content)}
    write_json(_file(stage, out), result)
    return result


def _call(command: list[str], shown: Any, seconds: float, *, save: bool, stopping: Event) -> int | None:
    """Runs a command; returns its exit code, or None if it had to be ended: after the seconds, or by `stopping`."""
    attached = [sys.executable, "-m", "psann_jax.engines.attached", str(os.getpid())]
    process = subprocess.Popen([*attached, *command], stdout=shown, stderr=shown, start_new_session=True)
    try:
        end = time.monotonic() + max(seconds - (_GRACE if save else 0), 1)
        while (code := process.poll()) is None and time.monotonic() < end and not stopping.wait(_POLL_S):
            pass
        if code is None and save:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        return code
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
