"""What the stages of a sweep share: options, folders, the list of runs, and running what is missing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psann_jax.experiments.cases import Case, folders
from psann_jax.experiments.run import LmEval


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


def run_folders(cases: Sequence[Case], parent: Path) -> dict[Case, Path]:
    """Returns the workdir of each run; cases with equal configs share one."""
    return {case: parent / folder for case, folder in folders(cases).items()}


def list_runs(title: str, paths: Mapping[Case, Path], done: Collection[Case], to_do: str = "to run") -> None:
    """Prints the runs of a stage and which of them are finished.

    Args:
      title: begins the first line.
      paths: from `run_folders`.
      done: the finished ones.
      to_do: the state of the others.
    """
    n_done = len({paths[case] for case in done})
    lines = [f"{title}: {len(set(paths.values()))} runs, {n_done} of them finished"]
    for case, folder in paths.items():
        train = case.config.train
        shared = folder.name != case.name
        state = "finished" if case in done else f"the same run as {folder.name}" if shared else to_do
        lines.append(f"  {case.name:<48}{train.steps:>8,} updates of {train.batch_tokens:,} tokens  {state}")
    print("\n".join(lines), flush=True)


def run_missing(
    paths: Mapping[Case, Path],
    done: Collection[Case],
    run: Callable[[Case, Path], str | None],
    report: Callable[[Mapping[Path, str]], None],
) -> dict[Path, str]:
    """Does the runs that are not done; one that fails does not end the others.

    Args:
      paths: from `run_folders`.
      done: the finished ones.
      run: does one run in its folder and returns the error if it fails.
      report: called after every run with the errors so far, by folder; once if there is nothing to do.

    Returns:
      The errors by folder.
    """
    missing: dict[Path, Case] = {}
    for case, folder in paths.items():
        if case not in done:
            missing.setdefault(folder, case)
    failures: dict[Path, str] = {}
    for i, (folder, case) in enumerate(missing.items()):
        print(f"\n=== {i + 1} of {len(missing)}: {folder.name}", flush=True)
        error = run(case, folder)
        if error is not None:
            failures[folder] = error
            print(f"failed: {error}", flush=True)
        report(failures)
    if not missing:
        report(failures)
    return failures
