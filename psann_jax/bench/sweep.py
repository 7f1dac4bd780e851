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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections.config_flags import config_flags

from psann_jax.bench.arguments import CONFIG
from psann_jax.bench.config_file import write_config_file
from psann_jax.bench.sweep_report import Outcome, write_report
from psann_jax.bench.sweeps import Case, all_cases, folders
from psann_jax.bench.workdir import WORKDIR
from psann_jax.config import Config
from psann_jax.config_io import to_dict
from psann_jax.errors import UserError
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG as CONFIG_JSON
from psann_jax.train.workdir import SUMMARY, read_json, storage_errors, write_json

_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only list what would be run; for a budget of seconds, speeds are measured all the same."
)
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
    places = {case: workdir / "runs" / folder for case, folder in folders(cases).items()}
    finished = {case for case in cases if _finished(case, places[case])}
    print(_listing(places, finished, workdir), flush=True)
    if _DRY_RUN.value:
        return
    missing: dict[Path, Case] = {}
    for case in cases:
        if case not in finished:
            missing.setdefault(places[case], case)
    failures: dict[Path, str] = {}
    for i, (place, case) in enumerate(missing.items()):
        print(f"\n=== {i + 1} of {len(missing)}: {place.name}", flush=True)
        error = _run(case, place)
        if error is not None:
            failures[place] = error
            print(f"failed: {error}", flush=True)
        _report(name, places, failures, workdir)
    if not missing:
        _report(name, places, failures, workdir)
    print(f"{workdir}/report.html", flush=True)
    if failures:
        names = ", ".join(place.name for place in failures)
        raise UserError(f"{workdir}: did not finish: {names}; the same command tries them again")


def _seeds(texts: Sequence[str]) -> tuple[int, ...]:
    for text in texts:
        if not text.isdecimal():
            raise UserError(f"--seeds: {text!r} is no seed; give whole numbers, as in 1,2,3")
    return tuple(map(int, texts))


def _listing(places: Mapping[Case, Path], finished: Collection[Case], workdir: Path) -> str:
    done = len({places[case] for case in finished})
    lines = [f"{workdir}: {len(set(places.values()))} runs, {done} of them finished"]
    for case, place in places.items():
        train = case.config.train
        state = "finished" if case in finished else "to run" if place.name == case.name else f"the run {place.name}"
        lines.append(f"  {case.name:<48}{train.steps:>8,} updates of {train.batch_tokens:,} tokens  {state}")
    return "\n".join(lines)


def _finished(case: Case, folder: Path) -> bool:
    """Whether the case has been run to its end.

    Raises:
      UserError: its folder holds a run of other settings.
    """
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


def _report(name: str, places: Mapping[Case, Path], failures: Mapping[Path, str], workdir: Path) -> None:
    outcomes = []
    for case, folder in places.items():
        if folder in failures:
            outcomes.append(Outcome(case, None, [], failures[folder]))
        elif _finished(case, folder):
            outcome = Outcome(case, read_json(folder / SUMMARY), read_metrics(folder / METRICS), None)
            if folder.name == case.name:
                write_json(folder / "metrics.json", outcome.metrics())
            outcomes.append(outcome)
    with storage_errors(workdir):
        write_report(name, outcomes, len(places), CONFIG.value.contenders[0][0], workdir)


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
