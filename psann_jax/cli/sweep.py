"""Trains the contenders of a sweep and compares them: psann-jax sweep --config=configs/sweeps/NAME.py.

Finished runs are not repeated, so the same command resumes an interrupted sweep and retries failed runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psann_jax.cli.flags import (
    ConfigParser,
    add_engine,
    default_workdir,
    names,
    positive_int,
    refuse_inactive_engine,
)
from psann_jax.config.files import load_config_file
from psann_jax.config.yaml_files import is_yaml
from psann_jax.utils.errors import UserError
from psann_jax.utils.locations import BucketUrl, given_location


def main(argv: Sequence[str]) -> None:
    """Runs what is missing of a sweep and writes its report."""
    flags = _parse(argv)
    if is_yaml(flags.config_file):
        raise UserError(f"--config: {flags.config_file}: a sweep is a Python file, as configs/sweeps/bases_cpu.py is")
    sweep = load_config_file(flags.config_file)
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.data.cache import cache_root
    from psann_jax.experiments.run import LmEval
    from psann_jax.experiments.runner import run_sweep
    from psann_jax.experiments.stages import SweepOptions
    from psann_jax.train.mirror import leased_workdir

    default = default_workdir(flags.config_file)
    location = given_location(flags.workdir or default, "--workdir")
    lm_eval = LmEval(tuple(flags.lm_eval_tasks), flags.lm_eval_limit, flags.lm_eval_include_path)
    options = SweepOptions(
        only=tuple(flags.bases),
        seeds=tuple(flags.seeds),
        overrides=tuple(flags.overrides),
        reference=flags.reference,
        lm_eval=lm_eval if flags.with_lm_eval else None,
        resume=not flags.noresume,
        dry_run=flags.dry_run,
        engine=_engine(flags, sweep, location),
    )
    with leased_workdir(location, cache_root("")) as workdir:
        run_sweep(sweep, default.name, workdir, options)


def _engine(flags: argparse.Namespace, sweep: Any, workdir: Path | BucketUrl) -> Any:
    """Returns the `psann_jax.engines.engine.Engine` that the flags name."""
    from psann_jax.engines.cluster import RayEngine
    from psann_jax.engines.local import LocalEngine
    from psann_jax.utils.extras import require_extra

    if flags.engine == "local":
        return LocalEngine(flags.jobs or 1)
    require_extra("--engine=ray", "ray")
    if "seconds" in sweep.get("budgets", ()):
        raise UserError("--engine: must be local, because the sweep's budget seconds needs one machine's speed")
    if isinstance(workdir, BucketUrl):
        raise UserError(f"--workdir: is {workdir}, must be a folder that all nodes see with --engine=ray")
    return RayEngine(workdir, flags.address, flags.cpus_per_run or 1, flags.gpus_per_run)


_LM_EVAL_DEFAULTS: dict[str, Any] = {"lm_eval_tasks": ["lambada_openai", "hellaswag"], "lm_eval_limit": 256}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser("sweep", "Trains the contenders of a sweep with every seed and compares them.")
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="where runs and reports go, as for train; default a folder in runs/")
    add("--dry_run", action="store_true", help="only list the runs; for the budget seconds, speeds are still measured")
    add("--noresume", action="store_true", help="refuse a workdir that holds runs of this sweep")
    add_engine(parser, "run", "runs at once, each with its part of the machine; default 1")
    add("--gpus_per_run", type=_gpus, metavar="N", help="GPUs, or a part of one; default 1 if the cluster has any")
    add("--bases", type=names, default=[], metavar="NAMES", help="only these contenders, as in transformer,ngt")
    add("--seeds", type=_seeds, default=[], metavar="SEEDS", help="instead of the sweep's seeds, as in 1,2,3")
    add("--reference", default="", metavar="NAME", help="compare the others with this contender; default the first")
    add("--with_lm_eval", action="store_true", help="evaluate every run on tasks of lm_eval, too")
    tasks, limit = _LM_EVAL_DEFAULTS.values()
    add("--lm_eval_tasks", type=names, metavar="NAMES", help=f"their names; default {','.join(tasks)}")
    add("--lm_eval_limit", type=positive_int, metavar="N", help=f"examples per task; default {limit}")
    add("--lm_eval_include_path", metavar="DIR", help="a folder with tasks of your own")
    flags = parser.parse_strictly(argv)
    for name in (*_LM_EVAL_DEFAULTS, "lm_eval_include_path"):
        if getattr(flags, name) is None:
            setattr(flags, name, _LM_EVAL_DEFAULTS.get(name))
        elif not flags.with_lm_eval:
            raise UserError(f"--{name}: has no effect without --with_lm_eval")
    refuse_inactive_engine(flags, "cpus_per_run", "gpus_per_run")
    return flags


def _gpus(text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = -1.0
    if not (0 <= count <= 1 or (1 < count < 1e6 and count.is_integer())):
        raise argparse.ArgumentTypeError(f"is {text[:80]!r}, must be a part of 1 or a whole number, as in 0.5 or 2")
    return count


def _seeds(text: str) -> list[int]:
    found = names(text)
    for seed in found:
        if not seed.isdecimal():
            raise argparse.ArgumentTypeError(f"{seed!r} is not a seed; give whole numbers, as in 1,2,3")
    return list(map(int, found))
