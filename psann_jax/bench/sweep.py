"""Runs a sweep and reports on it: python -m psann_jax.bench sweep --config=configs/sweeps/NAME.py --workdir=DIR.

Every run is a process of its own. What is finished is not run again, and a failed run does not end the sweep; the same
command goes on with what is missing. All runs share tokenizer, token shards and validation windows, which depend on the
settings of the data alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections.config_flags import config_flags

from psann_jax.bench.arguments import CONFIG
from psann_jax.bench.config_file import write_config_file
from psann_jax.bench.sweep_report import Outcome, write_report
from psann_jax.bench.sweeps import Case, all_cases
from psann_jax.bench.workdir import WORKDIR
from psann_jax.config import Config
from psann_jax.config_io import to_dict
from psann_jax.errors import UserError
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG as CONFIG_JSON
from psann_jax.train.workdir import SUMMARY, read_json, storage_errors, write_json

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only list what would be run.")
_BASES = flags.DEFINE_list("bases", [], "Only these contenders of the sweep.")
_SEEDS = flags.DEFINE_list("seeds", [], "Other seeds than the sweep's.")
_SPEED_STEPS = 8

# Settings that change nothing of what a run comes to.
_FREE = ("cache_dir", "threads")


def main() -> None:
    """Runs what is missing and writes the reports after every run."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the accelerator's memory is for the runs
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(WORKDIR.value or f"runs/{name}")
    cases = all_cases(CONFIG.value, only=_BASES.value, seeds=_seeds(_SEEDS.value), speed=_Speeds(workdir))
    missing = [case for case in cases if not _finished(case, workdir)]
    print(_listing(cases, missing, workdir), flush=True)
    if _DRY_RUN.value:
        return
    failures: dict[str, str] = {}
    for i, case in enumerate(missing):
        print(f"\n=== {i + 1} of {len(missing)}: {case.name}", flush=True)
        error = _run(case, workdir / "runs" / case.name)
        if error is not None:
            failures[case.name] = error
            print(f"failed: {error}", flush=True)
        _report(name, cases, failures, workdir)
    if not missing:
        _report(name, cases, failures, workdir)
    print(f"{workdir}/report.html", flush=True)
    if failures:
        raise UserError(f"{workdir}: did not finish: {', '.join(failures)}; the same command tries them again")


def _seeds(texts: Sequence[str]) -> tuple[int, ...]:
    for text in texts:
        if not text.isdecimal():
            raise UserError(f"--seeds: {text!r} is no seed; give whole numbers, as in 1,2,3")
    return tuple(map(int, texts))


def _listing(cases: Sequence[Case], missing: Sequence[Case], workdir: Path) -> str:
    lines = [f"{workdir}: {len(cases)} runs, {len(cases) - len(missing)} of them finished"]
    for case in cases:
        train = case.config.train
        state = "to run" if case in missing else "finished"
        lines.append(f"  {case.name:<48}{train.steps:>8,} updates of {train.batch_tokens:,} tokens  {state}")
    return "\n".join(lines)


def _finished(case: Case, workdir: Path) -> bool:
    """Whether the case has been run to its end.

    Raises:
      UserError: its folder holds a run of other settings.
    """
    folder = workdir / "runs" / case.name
    if not (folder / CONFIG_JSON).exists():
        return False
    if _comparable(read_json(folder / CONFIG_JSON)) != _comparable(json.loads(json.dumps(to_dict(case.config)))):
        raise UserError(f"{folder}: holds a run of other settings than the sweep's; choose another --workdir")
    return (folder / SUMMARY).exists() and read_json(folder / SUMMARY).get("steps") == case.config.train.steps


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in config["data"].items() if name not in _FREE}
    return {**config, "data": data}


def _run(case: Case, folder: Path) -> str | None:
    """Trains a case; what went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as config_folder:
        path = write_config_file(to_dict(case.config), Path(config_folder))
        command = [sys.executable, "-m", "psann_jax.main", f"--config={path}", f"--workdir={folder}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    return None if process.wait() == 0 else last.removeprefix("error: ") or f"exit code {process.returncode}"


def _report(name: str, cases: Sequence[Case], failures: dict[str, str], workdir: Path) -> None:
    outcomes = []
    for case in cases:
        folder = workdir / "runs" / case.name
        if case.name in failures:
            outcomes.append(Outcome(case, None, [], failures[case.name]))
        elif _finished(case, workdir):
            outcome = Outcome(case, read_json(folder / SUMMARY), read_metrics(folder / METRICS), None)
            write_json(folder / "metrics.json", outcome.metrics())
            outcomes.append(outcome)
    with storage_errors(workdir):
        write_report(name, outcomes, len(cases), CONFIG.value.contenders[0][0], workdir)


class _Speeds:
    """Tokens/s of configs on this device, measured once and kept in the workdir."""

    def __init__(self, workdir: Path):
        self._path = workdir / "speeds.json"

    def __call__(self, config: Config) -> float:
        known = read_json(self._path) if self._path.exists() else {}
        key = json.dumps([to_dict(config)[section] for section in ("model", "data", "mesh")], sort_keys=True)
        key += f" {config.train.batch_tokens} {config.train.precision} {jax.default_backend()}"
        if key not in known:
            known[key] = _measured(config)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, known)
        return float(known[key])


def _measured(config: Config) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = write_config_file(to_dict(config), Path(folder))
        result = Path(folder, "speed.json")
        command = [sys.executable, "-m", "psann_jax.bench", "throughput", f"--config={path}", f"--json={result}"]
        if subprocess.run([*command, f"--steps={_SPEED_STEPS}"], check=False).returncode:
            raise UserError(f"{config.model.base}: its speed could not be measured, as budget seconds asks")
        return float(read_json(result)["tokens_per_s"])
