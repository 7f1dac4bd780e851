"""Trains every config of a folder, one after the other, and compares them: psann-jax screening.

A run that is complete is not run again, and one that was stopped goes on, so the same command finishes what was
interrupted. A run that fails is named at the end; the others are not lost.
"""

import ast
import subprocess
import sys
from pathlib import Path

from absl import flags

from psann_jax.config import NGTConfig, require
from psann_jax.experiments.screening_report import Run, read_run, write_report
from psann_jax.experiments.workdir import WORKDIR
from psann_jax.plots.coordinates import write_coordinates
from psann_jax.runs.restore import load_text_run
from psann_jax.train.workdir import SUMMARY
from psann_jax.utils.errors import UserError

_CONFIGS = flags.DEFINE_string("configs", "configs/w3_25m", "The folder of the configs.")
_ONLY = flags.DEFINE_list("only", None, "Names of the configs to run; default all.")
_OVERRIDES = flags.DEFINE_multi_string("override", [], "A setting of every run, as in --override=train.steps=300.")
_REFERENCE = flags.DEFINE_string("reference", "ngt", "The run that ablations are compared with.")


def main() -> None:
    """Runs what the flags ask for; writes results.csv, report.md, val_loss.png and a coords_*.html for every ngt."""
    folder = Path(_CONFIGS.value)
    workdir = Path(WORKDIR.value or f"runs/{folder.name}")
    paths = chosen(folder, _ONLY.value)
    overrides = [f"--config.{setting}" for setting in _OVERRIDES.value]
    for path in paths:  # a mistake in an override is told before anything is trained
        _check(path, overrides)
    failed = []
    for i, path in enumerate(paths):
        print(f"\n=== {i + 1} of {len(paths)}: {path.stem}", flush=True)
        command = [sys.executable, "-m", "psann_jax.main", f"--config={path}", f"--workdir={workdir / path.stem}"]
        if subprocess.run([*command, *overrides], check=False).returncode:
            failed.append(path.stem)
            continue
        trained = load_text_run(workdir / path.stem)
        if isinstance(trained.config.model, NGTConfig):
            write_coordinates(workdir / f"coords_{path.stem}.html", trained, name=path.stem)
        runs = [run for path in paths if (run := _finished(path, workdir)) is not None]
        if runs:
            write_report(runs, workdir, reference=_REFERENCE.value)
            print(f"{len(runs)} of {len(paths)} runs in {workdir}/report.md", flush=True)
    if failed:
        raise UserError(f"{workdir}: did not finish: {', '.join(failed)}; the same command goes on from there")


def chosen(folder: Path, only: list[str] | None) -> list[Path]:
    """The config files of a folder, those of `only` in its order.

    Raises:
      UserError: there are none, or not the ones that are asked for.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.py"))}
    require(bool(found), "--configs", f"{folder} holds no config files")
    for name in only or ():
        require(name in found, "--only", f"{folder} has no {name}, only {', '.join(found)}")
    return [found[name] for name in only or found]


def _check(path: Path, overrides: list[str]) -> None:
    command = [sys.executable, "-m", "psann_jax.main", f"--config={path}", *overrides, "--print_config"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{path}: {done.stderr.strip().splitlines()[-1]}")


def _finished(path: Path, workdir: Path) -> Run | None:
    if not (workdir / path.stem / SUMMARY).exists():
        return None
    description = ast.get_docstring(ast.parse(path.read_text())) or path.stem
    return read_run(workdir / path.stem, description.splitlines()[0])
