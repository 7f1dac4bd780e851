"""Runs a sweep and writes its report after every run.

Every run is a process of its own; with --jobs, several train at once. Finished runs are not repeated and a failed run
does not end the sweep, so the same command completes what is missing. All runs share tokenizer, token shards and
validation windows, which depend on the data settings only. If the sweep has a tuning stage, its trials come first, see
`psann_jax.experiments.tuner`.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import config_dict

from psann_jax.config.names import nearest
from psann_jax.experiments.cases import Case, all_cases
from psann_jax.experiments.outcome import Outcome
from psann_jax.experiments.report import write_report
from psann_jax.experiments.run import check_data, finished, has_plotly, read_outcome, run_case, trained
from psann_jax.experiments.speeds import Speeds
from psann_jax.experiments.stages import SweepOptions, list_runs, run_folders, run_missing
from psann_jax.experiments.trials import Stage
from psann_jax.experiments.tuner import TUNING, tune
from psann_jax.experiments.tuning import Settings
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import require_extra
from psann_jax.utils.files import storage_errors, write_json


def run_sweep(sweep: config_dict.ConfigDict, name: str, workdir: Path, options: SweepOptions) -> None:
    """Runs what is missing of a sweep.

    Args:
      sweep: from `psann_jax.experiments.sweeps.sweep_config`.
      name: the title of the report.
      workdir: the folder for runs and reports.
      options: what to run.

    Raises:
      UserError: a setting or option is invalid, a run's folder holds other settings, the data of a run that others
        would be compared with have changed, or at least one run failed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the accelerator's memory is for the runs
    if options.lm_eval is not None:
        require_extra("--with_lm_eval", "lm_eval")
    paths = _compared_runs(sweep, workdir, options, {})  # also without a choice: errors show before any trial
    used = any(folder.exists() for folder in paths.values()) or (sweep.tuning and (workdir / TUNING).exists())
    if not options.resume and used:
        raise UserError(f"--workdir: {workdir} holds runs of this sweep; choose another, or omit --noresume")
    reference, stage = options.reference or sweep.contenders[0][0], None
    contenders = {case.contender for case in paths}
    if options.reference and reference not in contenders:
        raise UserError(f"--reference: {reference!r} is not compared{nearest(reference, contenders)}")
    if sweep.tuning is not None:
        # Until the choice, runs in the workdir can only be those of a sweep without tuning.
        stage = tune(sweep, workdir, options, lambda s: _report(name, [], len(paths), reference, workdir, s))
        chosen = {contender: choice.settings for contender, choice in stage.choices().items()}
        if not stage.complete:
            list_runs(f"{workdir}", paths, (), to_do="with what the trials choose")
            return
        paths = _compared_runs(sweep, workdir, options, chosen)
    if not all(trained(case, folder) for case, folder in paths.items()):
        trials = {} if stage is None else {o.case: o.folder for o in stage.outcomes}
        check_data({**trials, **{case: folder for case, folder in paths.items() if trained(case, folder)}})
    done = {case for case in paths if finished(case, paths[case], options.lm_eval)}
    list_runs(f"{workdir}", paths, done)
    if not has_plotly():
        pages = " and no coords_*.html pages" if any(case.config.model.HAS_COORDINATES for case in paths) else ""
        missing = f"no interactive figures in report.html{pages}"
        print(f"{missing}: they need plotly; pip install 'psann_jax[coordinates]'", flush=True)
    if options.dry_run:
        return
    failures = run_missing(
        paths,
        done,
        functools.partial(run_case, lm_eval=options.lm_eval),
        lambda failures: _report(name, _outcomes(paths, failures), len(paths), reference, workdir, stage),
        options.engine,
    )
    print(f"{workdir}/report.html", flush=True)
    if failures:
        names = ", ".join(folder.name for folder in failures)
        raise UserError(f"{workdir}: did not finish: {names}; the same command tries them again")


def _compared_runs(
    sweep: config_dict.ConfigDict, workdir: Path, options: SweepOptions, chosen: Mapping[str, Settings]
) -> dict[Case, Path]:
    cases = all_cases(
        sweep,
        only=options.only,
        seeds=options.seeds,
        overrides=options.overrides,
        speed=Speeds(workdir),
        chosen=chosen,
        reference=options.reference,
    )
    return run_folders(cases, workdir / "runs")


def _outcomes(paths: Mapping[Case, Path], failures: Mapping[Path, str]) -> list[Outcome]:
    """Reads the runs that are trained or have failed, and writes their metrics.json."""
    outcomes = []
    for case, folder in paths.items():
        if trained(case, folder):
            outcome = read_outcome(case, folder, failures.get(folder))
            if folder.name == case.name:
                write_json(folder / "metrics.json", outcome.metrics())
            outcomes.append(outcome)
        elif folder in failures:
            outcomes.append(Outcome(case, folder, None, [], failures[folder]))
    return outcomes


def _report(
    name: str, outcomes: Sequence[Outcome], n_cases: int, reference: str, workdir: Path, stage: Stage | None
) -> None:
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_report(name, outcomes, n_cases, reference, workdir, stage)
