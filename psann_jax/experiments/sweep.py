"""Runs a sweep and reports on it: psann-jax sweep --config=configs/sweeps/NAME.py --workdir=DIR.

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
from importlib.util import find_spec
from pathlib import Path

import jax
from absl import flags

from psann_jax.bench.arguments import CONFIG
from psann_jax.bench.config_file import write_config_file
from psann_jax.cli.config_flags import default_workdir
from psann_jax.config import Config
from psann_jax.config.io import to_dict
from psann_jax.experiments.report import Outcome, write_report
from psann_jax.experiments.run import LmEval, finished, outcome, run_case, trained
from psann_jax.experiments.sweeps import Case, all_cases, folders
from psann_jax.experiments.workdir import WORKDIR
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, storage_errors, write_json

_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only list what would be run; for a budget of seconds, speeds are measured all the same."
)
_RESUME = flags.DEFINE_bool(
    "resume", True, "Go on with what the workdir holds; --noresume: refuse one that holds runs."
)
_BASES = flags.DEFINE_list("bases", [], "Only these contenders of the sweep.")
_SEEDS = flags.DEFINE_list("seeds", [], "Other seeds than the sweep's.")
_WITH_LM_EVAL = flags.DEFINE_bool("with_lm_eval", False, "Also run lm_eval's tasks on every run.")
_LM_EVAL_TASKS = flags.DEFINE_list("lm_eval_tasks", ["lambada_openai", "hellaswag"], "Which.")
_LM_EVAL_LIMIT = flags.DEFINE_integer("lm_eval_limit", 256, "Examples of each task.", lower_bound=1)
_LM_EVAL_PATH = flags.DEFINE_string("lm_eval_include_path", None, "A folder with tasks of your own.")
_SPEED_STEPS = 8


def main() -> None:
    """Runs what is missing and writes the reports after every run."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the accelerator's memory is for the runs
    default = default_workdir()
    name, workdir = default.name, Path(WORKDIR.value or default)
    cases = all_cases(CONFIG.value, only=_BASES.value, seeds=_seeds(_SEEDS.value), speed=_Speeds(workdir))
    places = {case: workdir / "runs" / folder for case, folder in folders(cases).items()}
    lm_eval = _lm_eval()
    if not _RESUME.value and any(place.exists() for place in places.values()):
        raise UserError(f"--workdir: {workdir} holds runs of this sweep; choose another, or leave --noresume out")
    done = {case for case in cases if finished(case, places[case], lm_eval)}
    print(_listing(places, done, workdir), flush=True)
    if _DRY_RUN.value:
        return
    missing: dict[Path, Case] = {}
    for case in cases:
        if case not in done:
            missing.setdefault(places[case], case)
    failures: dict[Path, str] = {}
    for i, (place, case) in enumerate(missing.items()):
        print(f"\n=== {i + 1} of {len(missing)}: {place.name}", flush=True)
        error = run_case(case, place, lm_eval)
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


def _lm_eval() -> LmEval | None:
    if not _WITH_LM_EVAL.value:
        return None
    if find_spec("lm_eval") is None:
        raise UserError("--with_lm_eval: lm_eval is not installed; pip install 'psann_jax[lm_eval]'")
    return LmEval(tuple(_LM_EVAL_TASKS.value), _LM_EVAL_LIMIT.value, _LM_EVAL_PATH.value)


def _listing(places: Mapping[Case, Path], done: Collection[Case], workdir: Path) -> str:
    n_done = len({places[case] for case in done})
    lines = [f"{workdir}: {len(set(places.values()))} runs, {n_done} of them finished"]
    for case, place in places.items():
        train = case.config.train
        state = "finished" if case in done else "to run" if place.name == case.name else f"the run {place.name}"
        lines.append(f"  {case.name:<48}{train.steps:>8,} updates of {train.batch_tokens:,} tokens  {state}")
    return "\n".join(lines)


def _report(name: str, places: Mapping[Case, Path], failures: Mapping[Path, str], workdir: Path) -> None:
    outcomes = []
    for case, folder in places.items():
        if trained(case, folder):
            found = outcome(case, folder, failures.get(folder))
            if folder.name == case.name:
                write_json(folder / "metrics.json", found.metrics())
            outcomes.append(found)
        elif folder in failures:
            outcomes.append(Outcome(case, None, [], failures[folder]))
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
        command = [sys.executable, "-m", "psann_jax", "bench", "throughput", f"--config={path}", f"--json={result}"]
        if subprocess.run([*command, f"--steps={_SPEED_STEPS}"], check=False).returncode:
            raise UserError(f"{config.model.base}: its speed could not be measured, as budget seconds asks")
        return float(read_json(result)["tokens_per_s"])
