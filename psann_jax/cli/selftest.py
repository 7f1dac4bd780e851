"""Tests this machine: psann-jax selftest [--only=GPU-01,GPU-05] [--out=DIR].

Each of the checks GPU-01 to GPU-08 compares measured values with thresholds; docs/selftest.md describes them. The exit
code is 0 if all checks passed or were skipped, 1 if one failed, 2 for an error in the command line.
"""

import argparse
import datetime
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psann_jax.cli.flags import StrictParser, writable_file
from psann_jax.config.names import nearest
from psann_jax.selftest import IDS
from psann_jax.utils.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Runs the checks and writes the report; exits with code 1 if one failed."""
    flags = _parse(argv)
    ids = _select(flags.only)
    now = datetime.datetime.now(datetime.UTC)
    out = Path(flags.out or f"reports/selftest/{now:%Y%m%d_%H%M%S}-{socket.gethostname()}")
    # Imported here, so that errors in the command line are reported before JAX loads.
    from psann_jax.selftest.basics import system
    from psann_jax.selftest.check import Machine, run_checks
    from psann_jax.selftest.child import in_child
    from psann_jax.selftest.report import prepare, readme, write_report, write_summary
    from psann_jax.selftest.sizes import check_scale, sizes_for
    from psann_jax.selftest.suite import CHECKS

    if flags.scale is not None:
        check_scale(flags.scale)
    prepare(out)
    facts = in_child(system)
    machine = Machine(facts["backend"], facts["n_devices"])
    sizes = sizes_for(machine.platform, machine.n_devices, flags.scale)
    summary: dict[str, Any] = {"timestamp_utc": now.isoformat(timespec="seconds"), "system": facts, "results": []}

    def write(records: list[dict[str, Any]]) -> None:
        summary["results"] = records
        write_report(out, summary)
        if flags.json:
            write_summary(flags.json, summary)

    records = run_checks([CHECKS[i] for i in ids], sizes, machine, write)
    print(readme(summary))
    print(f"written to {out}")
    if any(record["status"] == "failed" for record in records):
        raise SystemExit(1)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = StrictParser("selftest", "Checks that this machine trains, shards, generates and resumes correctly.")
    add = parser.add_argument
    add("--only", metavar="IDS", help=f"checks to run, separated by commas; default all, {IDS[0]} to {IDS[-1]}")
    add("--out", metavar="DIR", help="folder of the report; default reports/selftest/TIME-HOST")
    add("--json", type=writable_file, metavar="FILE", help="write the content of summary.json to this file too")
    add("--scale", type=int, metavar="S", help="divide the batch_tokens of GPU-03 by S; default 1, on a CPU 64")
    return parser.parse_strictly(argv)


def _select(only: str | None) -> list[str]:
    """Returns the ids of the checks to run, in the order of the suite.

    Raises:
      UserError: an unknown check.
    """
    if only is None:
        return list(IDS)
    names = [name.strip().upper() for name in only.split(",")]
    for name in names:
        if name not in IDS:
            raise UserError(f"--only: {name!r} is not a check{nearest(name, IDS)}; choose from {', '.join(IDS)}")
    return [i for i in IDS if i in names]
