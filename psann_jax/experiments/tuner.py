"""Runs the tuning stage of a sweep: the missing trials, and those of a grid that is extended."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import config_dict

from psann_jax.config import ConfigError
from psann_jax.engines.place import Place
from psann_jax.experiments.cases import Case, experiment, label, sizes
from psann_jax.experiments.outcome import DIVERGED, Outcome
from psann_jax.experiments.run import check_data, read_outcome, train, trained
from psann_jax.experiments.stages import SweepOptions, list_runs, run_folders, run_missing
from psann_jax.experiments.trials import Stage, trial_cases
from psann_jax.experiments.tuning import Grid
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, write_json

TUNING, _DIVERGED_JSON = "tuning", "diverged.json"


def tune(sweep: config_dict.ConfigDict, workdir: Path, options: SweepOptions, report: Callable[[Stage], None]) -> Stage:
    """Does what is missing of the tuning stage.

    Which trials there are follows from the sweep and from the results of finished trials, so the same command resumes
    the stage, and a changed sweep repeats no trial that it still contains.

    Args:
      sweep: from `psann_jax.experiments.sweeps.sweep_config`, with a tuning stage.
      workdir: of the sweep; trials are in its folder "tuning".
      options: what to run.
      report: called after every trial.

    Returns:
      The stage; incomplete only with `options.dry_run`.

    Raises:
      UserError: a setting is invalid, the data of a finished trial have changed, a trial failed otherwise than by
        diverging, or all trials of a contender diverged.
    """
    tuning, (reference, own) = sweep.tuning, sweep.contenders[0]
    # Other budgets are those of the reference with its chosen settings.
    needed = {*options.only, *([] if tuple(sweep.budgets) == ("tokens",) else [reference])}
    tuned = [name for name, _ in sweep.contenders if not options.only or name in needed]
    rungs = [{name: label(name, rung) for name in tuned} for rung, _ in sizes(sweep)]
    grids = {key: tuning.grid(name) for rung in rungs for name, key in rung.items()}
    compared = experiment(sweep.common, reference, own, options.overrides).data.valid_names
    is_allowed = functools.partial(_is_allowed, sweep, options)
    while True:
        paths = run_folders(trial_cases(sweep, grids, options.overrides), workdir / TUNING)

        def state(failures: Mapping[Path, str], paths: Mapping[Case, Path] = paths) -> Stage:
            return Stage(tuning, compared, list(paths), _outcomes(paths, failures))

        done = [case for case in paths if _ended(case, paths[case])]
        wider = None if len(done) < len(paths) else _extended(state({}), grids, rungs, is_allowed)
        if len(done) < len(paths):
            check_data({case: paths[case] for case in done})
        if wider is None:
            list_runs(f"{workdir / TUNING}", paths, done)
            if len(done) == len(paths) or options.dry_run:
                return state({})
            failures = run_missing(paths, done, _run, lambda failures: report(state(failures)), options.engine)
            if failures:
                names = ", ".join(folder.name for folder in failures)
                raise UserError(f"{workdir / TUNING}: did not finish: {names}; the same command tries them again")
        else:
            grids = wider


def _is_allowed(sweep: config_dict.ConfigDict, options: SweepOptions, grids: Mapping[str, Grid]) -> bool:
    try:
        trial_cases(sweep, grids, options.overrides)
    except ConfigError:
        return False
    return True


def _extended(
    stage: Stage,
    grids: Mapping[str, Grid],
    rungs: Sequence[Mapping[str, str]],
    is_allowed: Callable[[Mapping[str, Grid]], bool],
) -> dict[str, Grid] | None:
    """Returns the grids for further trials, or None if the choice is final; UserError if nothing can be chosen.

    Args:
      stage: with all trials of the grids.
      grids: label -> grid.
      rungs: contender -> label, for each rung; the contenders of a rung have their grids extended together.
      is_allowed: whether all values of grids (label -> grid) are valid; the range of a setting ends before one that is
        not, such as a dropout of 1.
    """
    choices, result = stage.choices(), dict(grids)
    for choice in choices.values():
        if math.isinf(choice.candidates[0].loss):
            raise UserError(f"tuning: all trials of {choice.label} diverged; try other values")
    for labels in rungs:
        for edge in sorted({edge for key in labels.values() for edge in choices[key].edges}):
            wider = stage.tuning.extended({name: result[key] for name, key in labels.items()}, {edge})
            added = {labels[name]: grid for name, grid in (wider or {}).items()}
            if is_allowed(added):
                result |= added
    return None if result == grids else result


def _run(case: Case, folder: Path, place: Place) -> str | None:
    """Trains a trial; returns its error unless it diverged, which is a result and is not repeated."""
    error = train(case, folder, place)
    if error is None or not error.startswith(DIVERGED):
        return error
    write_json(folder / _DIVERGED_JSON, {"error": error})
    if place.shows_output:
        print(f"diverged: {error}", flush=True)
    return None


def _ended(case: Case, folder: Path) -> bool:
    return trained(case, folder) or (folder / _DIVERGED_JSON).exists()


def _outcomes(paths: Mapping[Case, Path], failures: Mapping[Path, str]) -> list[Outcome]:
    outcomes = []
    for case, folder in paths.items():
        if trained(case, folder):
            outcomes.append(read_outcome(case, folder, None))
        elif (folder / _DIVERGED_JSON).exists():
            outcomes.append(Outcome(case, folder, None, [], read_json(folder / _DIVERGED_JSON)["error"]))
        elif folder in failures:
            outcomes.append(Outcome(case, folder, None, [], failures[folder]))
    return outcomes
