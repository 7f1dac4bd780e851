"""One run of a sweep: training, tasks of lm_eval, pictures, and which code did it."""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psann_jax
from psann_jax.bench.config_file import write_config_file
from psann_jax.config import DecoderConfig
from psann_jax.config.io import to_dict
from psann_jax.experiments.report import Outcome
from psann_jax.experiments.sweeps import Case
from psann_jax.train.metrics import METRICS, read_metrics
from psann_jax.train.workdir import CONFIG as CONFIG_JSON
from psann_jax.train.workdir import SUMMARY
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, write_json

# Settings that change nothing of what a run comes to.
_FREE = ("cache_dir", "num_workers")
CODE, LM_EVAL, SINE_PICTURE = "code.json", "lm_eval.json", "sine_parameters.png"


@dataclass(frozen=True)
class LmEval:
    """What lm_eval is to do with a trained run.

    Attributes:
      tasks: their names.
      limit: examples of each.
      include_path: a folder with more tasks, or None.
    """

    tasks: tuple[str, ...]
    limit: int
    include_path: str | None

    def command(self, folder: Path) -> list[str]:
        """Arguments of the process that writes the results into a run's folder."""
        flags = [f"--workdir={folder}", f"--tasks={','.join(self.tasks)}", f"--limit={self.limit}"]
        flags += [] if self.include_path is None else [f"--include_path={self.include_path}"]
        return ["psann_jax.cli.lm_eval", *flags, f"--json={folder / LM_EVAL}"]

    def done(self, folder: Path) -> bool:
        """Whether the results of just these tasks and this limit are there."""
        if not (folder / LM_EVAL).exists():
            return False
        found = read_json(folder / LM_EVAL)
        return (found.get("tasks"), found.get("limit")) == (list(self.tasks), self.limit)


@cache
def code_version() -> dict[str, str]:
    """The versions of what trains, and a hash of this package's modules."""
    package = Path(psann_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    versions = {name: version(name) for name in ("psann_jax", "jax", "flax", "optax")}
    return {**versions, "code": digest.hexdigest()[:12]}


def finished(case: Case, folder: Path, lm_eval: LmEval | None) -> bool:
    """Whether nothing of a run is missing.

    Raises:
      UserError: its folder holds a run of other settings, or a damaged file.
    """
    drawn = not _has_sine(case) or (folder / SINE_PICTURE).exists()
    return trained(case, folder) and drawn and (lm_eval is None or lm_eval.done(folder))


def trained(case: Case, folder: Path) -> bool:
    """Whether a run has done all its updates; raises UserError as `finished`."""
    if not (folder / CONFIG_JSON).exists():
        return False
    if _comparable(read_json(folder / CONFIG_JSON)) != _comparable(json.loads(json.dumps(to_dict(case.config)))):
        raise UserError(f"{folder}: holds a run of other settings than the sweep's; choose another --workdir")
    return (folder / SUMMARY).exists() and read_json(folder / SUMMARY).get("steps") == case.config.train.steps


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in config["data"].items() if name not in _FREE}
    return {**config, "data": data}


def run_case(case: Case, folder: Path, lm_eval: LmEval | None) -> str | None:
    """Does what is missing of a run; what went wrong, if anything did."""
    if not trained(case, folder):
        _write_code(folder)
        with tempfile.TemporaryDirectory() as config_folder:
            path = write_config_file(to_dict(case.config), Path(config_folder))
            error = _process(["psann_jax.main", f"--config={path}", f"--workdir={folder}"])
        if error is not None:
            return error
    if _has_sine(case) and not (folder / SINE_PICTURE).exists():
        error = _process(["psann_jax.cli.sine", f"--workdir={folder}"])
        if error is not None:
            return error
    return None if lm_eval is None or lm_eval.done(folder) else _process(lm_eval.command(folder))


def _has_sine(case: Case) -> bool:
    model = case.config.model
    resolved = model.resolve() if isinstance(model, DecoderConfig) else model
    return getattr(resolved, "mlp_activation", None) == "sine"


def _write_code(folder: Path) -> None:
    """Adds the present code to those that have trained a run, which is one unless it was gone on with by another."""
    path = folder / CODE
    known: list[Any] = read_json(path)["trained_by"] if path.exists() else []
    if code_version() not in known:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"trained_by": [*known, code_version()]})


def outcome(case: Case, folder: Path, error: str | None) -> Outcome:
    """What a trained run has left; `error` tells why something after the training is missing."""
    lm_eval = read_json(folder / LM_EVAL) if (folder / LM_EVAL).exists() else None
    codes = read_json(folder / CODE)["trained_by"] if (folder / CODE).exists() else []
    picture = folder / SINE_PICTURE
    summary, rows = read_json(folder / SUMMARY), read_metrics(folder / METRICS)
    return Outcome(case, summary, rows, error, codes, lm_eval, picture if picture.exists() else None)


def _process(arguments: Sequence[str]) -> str | None:
    """Runs a module of this package with its output shown; its last line, if it fails."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        last = line.strip() or last
    return None if process.wait() == 0 else last.removeprefix("error: ") or f"exit code {process.returncode}"
