"""What the stages of a sweep share: options, folders, the list of runs, and running what is missing."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from psann_jax.config import DataConfig
from psann_jax.engines.engine import Engine, NoWatch
from psann_jax.engines.local import LocalEngine
from psann_jax.engines.place import Place
from psann_jax.experiments.cases import Case, folders
from psann_jax.experiments.run import LmEval, prepare_text
from psann_jax.experiments.run_table import Report, RunTable


@dataclass(frozen=True)
class SweepOptions:
    """What to run of a sweep, and how.

    Attributes:
      only: names of contenders; (): all.
      seeds: seeds to use instead of the sweep's; (): the sweep's.
      overrides: "KEY=VALUE" for the settings of all contenders.
      reference: the contender that the report compares the others with; "": the sweep's first.
      lm_eval: the evaluation on standard tasks, or None.
      resume: False: refuse a workdir that holds runs of this sweep.
      dry_run: only list the runs.
      engine: what does the runs.
    """

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    reference: str = ""
    lm_eval: LmEval | None = None
    resume: bool = True
    dry_run: bool = False
    engine: Engine = field(default_factory=LocalEngine)


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


Run = Callable[[Case, Path, Place], str | None]


def run_missing(
    paths: Mapping[Case, Path], done: Collection[Case], run: Run, report: Report, engine: Engine
) -> dict[Path, str]:
    """Does the runs that are not done; one that fails does not end the others.

    Args:
      paths: from `run_folders`.
      done: the finished ones.
      run: does one run in its folder, at a place, and returns the error if it fails. For a cluster, a function of a
        module, or a `functools.partial` of one.
      report: called after every run with the errors so far, by folder; once if there is nothing to do.
      engine: what does the runs.

    Returns:
      The errors by folder.
    """
    missing: dict[Path, Case] = {}
    for case, folder in paths.items():
        if case not in done:
            missing.setdefault(folder, case)
    if not missing:
        report({})
        return {}
    jobs = {folder: functools.partial(run, case, folder) for folder, case in missing.items()}
    if not engine.at_once(len(missing)):
        alone = _Alone(len(missing), report)
        engine.run(jobs, alone)
        return alone.failures
    _prepare_texts(missing, engine)
    with RunTable(missing, report) as table:
        engine.run(jobs, table)
    return table.failures


def _prepare_texts(missing: Mapping[Path, Case], engine: Engine) -> None:
    """Prepares the texts of runs, one with the whole machine; runs that start at once would wait for a part of it.

    Errors are ignored, because the runs that need the text report them.
    """
    texts = {case.config.data: (case, folder) for folder, case in list(missing.items())[::-1]}  # the first one's folder
    texts = {data: first for data, first in texts.items() if isinstance(data, DataConfig)}
    jobs = {folder: functools.partial(prepare_text, case, folder) for case, folder in texts.values()}
    engine.run(jobs, NoWatch())


class _Alone:
    """A `Watch` of runs one after the other, which show their output themselves.

    Attributes:
      failures: the errors so far, by folder.
    """

    def __init__(self, n_runs: int, report: Report) -> None:
        self.failures: dict[Path, str] = {}
        self._n_runs, self._n_started, self._report = n_runs, 0, report

    def started(self, folder: Path) -> None:
        """See `Watch`."""
        self._n_started += 1
        print(f"\n=== {self._n_started} of {self._n_runs}: {folder.name}", flush=True)

    def refresh(self) -> None:
        """See `Watch`."""

    def ended(self, folder: Path, error: str | None) -> None:
        """See `Watch`."""
        if error is not None:
            self.failures[folder] = error
            print(f"failed: {error}", flush=True)
        self._report(self.failures)
