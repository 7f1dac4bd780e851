"""Trains an experiment: psann-jax train --config=configs/quickstart.py [--workdir=DIR] [--config.train.lr=1e-3].

A run that was interrupted resumes when the same command is given again.
"""

import argparse
import faulthandler
from collections.abc import Sequence

from psann_jax.cli.flags import ConfigParser, default_workdir, positive_int, read_config
from psann_jax.config.io import flatten, to_dict
from psann_jax.utils.locations import given_location


def main(argv: Sequence[str]) -> None:
    """Trains the experiment of --config, or resumes it from its last checkpoint."""
    flags = _parse(argv)
    config = read_config(flags)
    if flags.print_config:
        print("\n".join(f"{name}={value}" for name, value in flatten(to_dict(config))))
        return
    # Imported here, so that errors in the config are reported before JAX loads.
    from psann_jax.convert.start import open_start
    from psann_jax.data.cache import cache_root
    from psann_jax.runs.training import train_run
    from psann_jax.train.compilation import enable_compilation_cache
    from psann_jax.train.processes import join

    faulthandler.enable()
    join(flags.join_timeout)
    enable_compilation_cache(cache_root(config.data.cache_dir) / "programs")
    workdir = given_location(flags.workdir or default_workdir(flags.config_file), "--workdir")
    summary = train_run(config, workdir, open_start=open_start, profile_steps=flags.profile_steps)
    if summary.get("stopped"):
        raise SystemExit(flags.stop_code)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ConfigParser("train", "Trains the experiment of a config file, or resumes it.")
    add = parser.add_argument
    default = "default runs/ and the config's path below configs/"
    add("--workdir", metavar="DIR", help=f"where the run's files go: a directory, s3://... or gs://...; {default}")
    add(
        "--profile_steps",
        default="",
        metavar="FIRST:LAST",
        help="steps to trace, into profile/ in the workdir; a run that resumes traces those that are left",
    )
    add(
        "--join_timeout",
        type=positive_int,
        default=300,
        metavar="S",
        help="seconds to wait for the other processes of a run; default 300",
    )
    add(
        "--stop_code",
        type=_exit_code,
        default=0,
        metavar="N",
        help="exit code of a run that a signal stops before its last step; default 0",
    )
    add("--print_config", action="store_true", help="print all settings as overrides, KEY=VALUE, and exit")
    return parser.parse_strictly(argv)


def _exit_code(text: str) -> int:
    if not text.isdecimal() or int(text) > 255:
        raise argparse.ArgumentTypeError(f"is {text[:80]!r}, must be a whole number from 0 to 255")
    return int(text)
