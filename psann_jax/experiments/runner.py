"""Runs a sweep and writes its report after every run.

Every run is a process of its own. Finished runs are not repeated and a failed run does not end the sweep, so the same
command completes what is missing. All runs share tokenizer, token shards and validation windows, which depend on the
data settings only.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import config_dict

from psann_jax.experiments.cases import Case, all_cases, folders
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.report import write_report
from psann_jax.experiments.run import LmEval, finished, has_plotly, read_outcome, run_case, trained
from psann_jax.experiments.speeds import Speeds
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import storage_errors, write_json


@dataclass(frozen=True)
class SweepOptions:
    """What to run of a sweep, and how.

    Attributes:
      only: names of contenders; (): all.
      seeds: seeds to use instead of the sweep's; (): the sweep's.
      overrides: "KEY=VALUE" for the settings of all contenders.
      lm_eval: the evaluation on standard tasks, or None.
      resume: False: refuse a workdir that holds runs of this sweep.
      dry_run: only list the runs.
    """

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    lm_eval: LmEval | None = None
    resume: bool = True
    dry_run: bool = False


def run_sweep(sweep: config_dict.ConfigDict, name: str, workdir: Path, options: SweepOptions) -> None:
    """Runs what is missing of a sweep.

    Args:
      sweep: from `psann_jax.experiments.sweeps.sweep_config`.
      name: the title of the report.
      workdir: the folder for runs and reports.
      options: what to run.

    Raises:
      UserError: a setting or option is invalid, a run's folder holds other settings, or at least one run failed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the accelerator's memory is for the runs
    if options.lm_eval is not None:
        require_extra("--with_lm_eval", "lm_eval")
    cases = all_cases(sweep, only=options.only, seeds=options.seeds, overrides=options.overrides, speed=Speeds(workdir))
    run_folders = {case: workdir / "runs" / folder for case, folder in folders(cases).items()}
    if not options.resume and any(folder.exists() for folder in run_folders.values()):
        raise UserError(f"--workdir: {workdir} holds runs of this sweep; choose another, or omit --noresume")
    done = {case for case in cases if finished(case, run_folders[case], options.lm_eval)}
    print(_listing(run_folders, done, workdir), flush=True)
    if options.dry_run:
        return
    missing: dict[Path, Case] = {}
    for case in cases:
        if case not in done:
            missing.setdefault(run_folders[case], case)
    reference = sweep.contenders[0][0]
    failures: dict[Path, str] = {}
    for i, (folder, case) in enumerate(missing.items()):
        print(f"\n=== {i + 1} of {len(missing)}: {folder.name}", flush=True)
        error = run_case(case, folder, options.lm_eval)
        if error is not None:
            failures[folder] = error
            print(f"failed: {error}", flush=True)
        _report(name, run_folders, failures, reference, workdir)
    if not missing:
        _report(name, run_folders, failures, reference, workdir)
    print(f"{workdir}/report.html", flush=True)
    if failures:
        names = ", ".join(folder.name for folder in failures)
        raise UserError(f"{workdir}: did not finish: {names}; the same command tries them again")


def _listing(run_folders: Mapping[Case, Path], done: Collection[Case], workdir: Path) -> str:
    n_done = len({run_folders[case] for case in done})
    lines = [f"{workdir}: {len(set(run_folders.values()))} runs, {n_done} of them finished"]
    for case, folder in run_folders.items():
        train = case.config.train
        shared = folder.name != case.name
        state = "finished" if case in done else f"the same run as {folder.name}" if shared else "to run"
        lines.append(f"  {case.name:<48}{train.steps:>8,} updates of {train.batch_tokens:,} tokens  {state}")
    if not has_plotly():
        pages = " and no coords_*.html pages" if any(case.config.model.HAS_COORDINATES for case in run_folders) else ""
        missing = f"no interactive figures in report.html{pages}"
        lines.append(f"{missing}: they need plotly; pip install 'psann_jax[coordinates]'")
    return "\n".join(lines)


def _report(
    name: str, run_folders: Mapping[Case, Path], failures: Mapping[Path, str], reference: str, workdir: Path
) -> None:
    outcomes = []
    for case, folder in run_folders.items():
        if trained(case, folder):
            outcome = read_outcome(case, folder, failures.get(folder))
            if folder.name == case.name:
                write_json(folder / "metrics.json", outcome.metrics())
            outcomes.append(outcome)
        elif folder in failures:
            outcomes.append(Outcome(case, folder, None, [], failures[folder]))
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_report(name, outcomes, len(run_folders), reference, workdir)
