"""One run of a sweep, in child processes: training, figures and lm_eval's tasks."""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from psann_jax.bench.config_file import write_config_file
from psann_jax.config import DataConfig
from psann_jax.config.io import default_config, flatten, to_dict
from psann_jax.engines.place import STOPPED, Place
from psann_jax.experiments.cases import Case
from psann_jax.experiments.data_check import data_fingerprint, valid_hashes
from psann_jax.experiments.outcome import Outcome
from psann_jax.runs.samples import SAMPLES
from psann_jax.sample.prompts import sample_settings
from psann_jax.train.evaluation import WindowLosses
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG as CONFIG_JSON
from psann_jax.train.workdir import is_locked, read_config, read_summary
from psann_jax.utils.errors import UserError
from psann_jax.utils.extras import is_installed
from psann_jax.utils.files import read_json, write_json

# Settings that do not affect a run's results.
_FREE = ("data.cache_dir", "data.num_workers", "train.loggers", "eval.prompts")
_WAIT_S, _WAIT_POLL_S = 60.0, 0.5  # for a process that still trains in a run's folder
CODE, LM_EVAL, SINE_FIGURE = "code.json", "lm_eval.json", "sine_parameters.png"
DATA, VALID = "data", "valid_sha256"  # in `CODE`: see `data_fingerprint` and `valid_hashes`


@dataclass(frozen=True)
class LmEval:
    """The evaluation of a trained run by lm_eval.

    Attributes:
      tasks: their names.
      limit: number of examples per task.
      include_path: a folder with more tasks, or None.
    """

    tasks: tuple[str, ...]
    limit: int
    include_path: str | None = None

    def command(self, folder: Path) -> list[str]:
        """Returns the arguments of the process that writes the results into a run's folder."""
        flags = [f"--workdir={folder}", f"--tasks={','.join(self.tasks)}", f"--limit={self.limit}"]
        flags += [] if self.include_path is None else [f"--include_path={self.include_path}"]
        return ["psann_jax", "lm_eval", *flags, f"--json={folder / LM_EVAL}"]

    def done(self, folder: Path) -> bool:
        """Returns whether a run's folder has the results of these tasks with this limit."""
        if not (folder / LM_EVAL).exists():
            return False
        found = read_json(folder / LM_EVAL)
        return (found.get("tasks"), found.get("limit")) == (list(self.tasks), self.limit)


# --- what is done ---------------------------------------------------------------------------------------


def finished(case: Case, folder: Path, lm_eval: LmEval | None) -> bool:
    """Returns whether a run is trained and all files after training exist.

    Raises:
      UserError: the folder holds a run with other settings, or a damaged file.
    """
    return trained(case, folder) and not _missing(case, folder, lm_eval)


def trained(case: Case, folder: Path) -> bool:
    """Returns whether a run has done all its updates; raises UserError as `finished` does."""
    if not (folder / CONFIG_JSON).exists():
        return False
    # A setting that is younger than the run had its default's effect.
    defaults = _comparable(default_config(case.config.model.base).to_dict())
    if defaults | _comparable(read_config(folder)) != _comparable(to_dict(case.config)):
        raise UserError(f"{folder}: holds a run with other settings than the sweep's; choose another --workdir")
    return read_summary(folder).get("steps") == case.config.train.steps


def check_data(paths: Mapping[Case, Path]) -> None:
    """Checks that runs were trained on the data that their settings name now, so that others can be compared with them.

    A run without a record of its data, as those of earlier versions are, counts as one that was.

    Args:
      paths: runs that have ended and their workdirs.

    Raises:
      UserError: the data of a run have changed since it started.
    """
    present = {data: data_fingerprint(data) for data in {case.config.data for case in paths}}
    for case, folder in paths.items():
        recorded = read_json(folder / CODE).get(DATA) if (folder / CODE).exists() else None
        data = case.config.data
        if None not in (recorded, present[data]) and recorded != present[data]:
            names = ", ".join((*data.train_names, *data.valid_names))
            raise UserError(
                f"{folder}: was trained on another content of {names}; restore it, or choose another --workdir"
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns those settings that affect results, by dotted name; lists of JSON as tuples."""
    return {name: value for name, value in flatten(config) if name not in _FREE}


def _missing(case: Case, folder: Path, lm_eval: LmEval | None) -> list[list[str]]:
    """Returns the commands whose results a trained run lacks."""
    commands = []
    if case.config.model.uses_sine and not (folder / SINE_FIGURE).exists():
        commands.append(["psann_jax", "sine", f"--workdir={folder}"])
    # These commands refuse a network that has diverged: its coordinates and logits are not finite.
    if not math.isfinite(read_summary(folder)["val_loss"]):
        return commands
    page = coordinates_page(folder)
    if case.config.model.HAS_COORDINATES and has_plotly() and not page.exists():
        commands.append(["psann_jax", "coordinates", f"--workdir={folder}", f"--out={page}"])
    if isinstance(case.config.data, DataConfig) and _samples(case, folder) is None:
        commands.append(["psann_jax", "samples", f"--workdir={folder}"])
    if lm_eval is not None and not lm_eval.done(folder):
        commands.append(lm_eval.command(folder))
    return commands


def _samples(case: Case, folder: Path) -> dict[str, Any] | None:
    """The sample texts of a run, unless they are of an earlier end of the run or of other prompts or settings."""
    if not (folder / SAMPLES).exists():
        return None
    found = read_json(folder / SAMPLES)
    expected = {"step": case.config.train.steps, **sample_settings(case.config.eval.prompts)}
    return found if expected.items() <= found.items() else None


def coordinates_page(folder: Path) -> Path:
    """Returns the path of a run's coordinates page, which is in the sweep's workdir."""
    return folder.parents[1] / f"coords_{folder.name}.html"


def has_plotly() -> bool:
    """Returns whether plotly is installed, which interactive pages need."""
    return is_installed("plotly")


# --- doing it -------------------------------------------------------------------------------------------


def run_case(case: Case, folder: Path, place: Place, lm_eval: LmEval | None) -> str | None:
    """Does what a run lacks.

    Args:
      case: the run.
      folder: its workdir.
      place: where its child processes run.
      lm_eval: the evaluation on standard tasks, or None.

    Returns:
      The error of the first process that failed, or None.
    """
    error = train(case, folder, place)
    if error is not None:
        return error
    for command in _missing(case, folder, lm_eval):
        error = place.run_module(command, folder)
        if error is not None:
            return error
    return None


def train(case: Case, folder: Path, place: Place) -> str | None:
    """Trains a run unless that is done; returns the error if it fails. Arguments are those of `run_case`."""
    if trained(case, folder):
        return None
    _wait_for_earlier(folder, place)
    _record_start(case, folder, place)
    error = _with_config(
        case, lambda config: place.run_module(["psann_jax.main", config, f"--workdir={folder}"], folder)
    )
    return STOPPED if error is None and not trained(case, folder) else error


def _wait_for_earlier(folder: Path, place: Place) -> None:
    """Waits while a process trains in the folder: one whose sweep or node was killed may still save its state."""
    end = time.monotonic() + _WAIT_S
    while is_locked(folder) and time.monotonic() < end and not place.stopping():
        time.sleep(_WAIT_POLL_S)


def prepare_text(case: Case, folder: Path, place: Place) -> str | None:
    """Prepares the text of a run, or finds it in the cache; arguments and result are those of `run_case`."""
    return _with_config(case, lambda config: place.run_module(["psann_jax", "prepare", config], folder))


def _with_config(case: Case, run: Callable[[str], str | None]) -> str | None:
    """Calls `run` with the flag --config of a run's settings."""
    with tempfile.TemporaryDirectory() as folder:
        return run(f"--config={write_config_file(to_dict(case.config), Path(folder))}")


def code_version() -> dict[str, str]:
    """Returns the versions of this package and its main dependencies, and a hash of this package's modules."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    versions = {name: version(name) for name in ("psann_jax", "jax", "flax", "optax")}
    return {**versions, "code": digest.hexdigest()[:12]}


def _record_start(case: Case, folder: Path, place: Place) -> None:
    """Adds the current code to a run's code.json, its data, and whether it shares cores or a GPU with others.

    There are several versions if a run was resumed after a change.
    """
    path = folder / CODE
    known = read_json(path) if path.exists() else {"trained_by": []}
    # Now, not once per sweep: a run is a process of its own and imports what has been edited meanwhile.
    code, codes, shares = code_version(), known["trained_by"], known.get("shares", False)
    record = {
        "trained_by": codes if code in codes else [*codes, code],
        "shares": shares or place.shares,
        DATA: data_fingerprint(case.config.data),
        VALID: valid_hashes(case.config.data),
    }
    if record != known:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def read_outcome(case: Case, folder: Path, error: str | None) -> Outcome:
    """Reads the results of a trained run.

    Args:
      case: the run.
      folder: its workdir.
      error: why a step after training failed, or None.

    Raises:
      UserError: a file is damaged.
    """
    figure, page = folder / SINE_FIGURE, coordinates_page(folder)
    start = read_json(folder / CODE) if (folder / CODE).exists() else {}
    return Outcome(
        case,
        folder,
        summary=read_summary(folder),
        rows=read_metrics(folder / METRICS),
        error=error,
        codes=start.get("trained_by", []),
        shares=start.get("shares", False),
        lm_eval=read_json(folder / LM_EVAL) if (folder / LM_EVAL).exists() else None,
        sine_figure=figure if figure.exists() else None,
        coordinates_page=page if page.exists() else None,
        windows=_windows(folder, case),
        samples=_samples(case, folder),
        valid_sha256=start.get(VALID),
    )


def _windows(folder: Path, case: Case) -> WindowLosses | None:
    """The losses by window, unless they are of an earlier end of the run."""
    found = WindowLosses.read(folder)
    return found if found is not None and found.step == case.config.train.steps else None
