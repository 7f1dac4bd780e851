"""What a check is, and how all of them are run."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psann_jax.bench.turns import log
from psann_jax.selftest.child import ChildError
from psann_jax.selftest.sizes import Sizes


@dataclass(frozen=True)
class Machine:
    """What the checks run on.

    Attributes:
      platform: cpu, gpu or tpu.
      n_devices: that one process sees.
    """

    platform: str
    n_devices: int


class SkipError(Exception):
    """A check that this machine cannot run; the message is the reason."""


@dataclass
class Findings:
    """What a check has found.

    Attributes:
      measured: JSON-like.
      failures: what is not as it should be, a line each.
    """

    measured: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def expect(self, ok: bool, failure: str) -> None:
        """Notes a failure unless `ok`; write comparisons so that NaN is not ok."""
        if not ok:
            self.failures.append(failure)


@dataclass(frozen=True)
class Check:
    """One entry of the suite.

    Attributes:
      id: as --only names it.
      title: what is checked.
      threshold: name -> what `run` holds the measured values against.
      run: the check itself. May raise SkipError; any other exception is a failure too.
    """

    id: str
    title: str
    threshold: Mapping[str, Any]
    run: Callable[[Sizes, Machine], Findings]


def run_check(check: Check, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """The record of a check: id, title, status, reason unless passed, threshold, measured, seconds."""
    began = time.perf_counter()
    findings, reason, status = Findings(), "", "passed"
    try:
        findings = check.run(sizes, machine)
    except SkipError as skip:
        status, reason = "skipped", str(skip)
    except ChildError as error:
        status, reason = "failed", str(error)
        print(error.details, file=sys.stderr)
    except Exception as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        traceback.print_exc()
    if findings.failures:
        status, reason = "failed", "; ".join(findings.failures)
    record = {"id": check.id, "title": check.title, "status": status, "threshold": dict(check.threshold)}
    if reason:
        record["reason"] = reason
    return {**record, "measured": findings.measured, "seconds": round(time.perf_counter() - began, 2)}


def run_checks(
    checks: Sequence[Check], sizes: Sizes, machine: Machine, write: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Runs checks one after the other, telling of each on standard error.

    Args:
      checks: which.
      sizes: for the machine.
      machine: on which.
      write: gets all records so far after every check, so that a kill loses none.

    Returns:
      Their records.
    """
    records: list[dict[str, Any]] = []
    for check in checks:
        log(f"{check.id} {check.title} ...")
        records.append(record := run_check(check, sizes, machine))
        reason = f": {record['reason']}" if "reason" in record else ""
        log(f"{check.id} {record['status']} in {record['seconds']:.1f} s{reason}")
        write(records)
    return records
