"""The files of a run: whose workdir it is, config.json, summary.json."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax

from psann_jax.config import Config
from psann_jax.config.io import flatten, to_dict
from psann_jax.utils.errors import UserError
from psann_jax.utils.files import read_json, storage_errors, write_json

CONFIG, SUMMARY, _LOCK = "config.json", "summary.json", ".lock"

# Settings that may differ when a run goes on: how long, how often, on what; not what is computed.
FREE = (
    "train.steps",
    "train.grad_accum",
    "train.remat",
    "train.scan_layers",
    "train.log_every",
    "train.max_bad_steps",
    "model.attention",
    "data.cache_dir",
    "data.num_workers",
    "eval.",
    "checkpoint.",
    "mesh.",
)


@contextlib.contextmanager
def claim(workdir: Path, config: Config) -> Iterator[None]:
    """Makes the workdir this run's own for as long as the context lasts.

    Raises:
      UserError: it cannot be written, another process trains in it, or it holds another run.
    """
    if jax.process_index() != 0:
        yield
        return
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / _LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{workdir}: another process is training in this workdir") from error
        _check_same_run(workdir, config)
        write_json(workdir / CONFIG, to_dict(config))
        yield


def _check_same_run(workdir: Path, config: Config) -> None:
    path = workdir / CONFIG
    if not path.exists():
        strangers = [p.name for p in workdir.iterdir() if p.name in ("checkpoints", "metrics.jsonl")]
        if strangers:
            raise UserError(f"{workdir}: holds {strangers[0]} but no {CONFIG}; choose another --workdir")
        return
    before, now = dict(flatten(read_json(path))), dict(flatten(to_dict(config)))
    differing = [n for n in sorted(before | now) if before.get(n) != now.get(n) and not n.startswith(FREE)]
    if differing:
        shown = "; ".join(f"{n} is {before.get(n)!r} there and {now.get(n)!r} here" for n in differing[:3])
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"{workdir}: holds another run: {shown}{more}; choose another --workdir")
