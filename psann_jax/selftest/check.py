"""Checks of the self-test and their runner."""

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
    """The hardware that the checks run on.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      n_devices: number of devices visible to one process.
    """

    platform: str
    n_devices: int


class SkipError(Exception):
    """Raised by a check that this machine cannot run; the message is the reason."""


@dataclass
class Findings:
    """Results of a check.

    Attributes:
      measured: measured values, as for JSON.
      failures: one line per failed expectation.
    """

    measured: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def expect(self, ok: bool, failure: str) -> None:
        """Records a failure unless `ok`. Write comparisons so that NaN fails."""
        if not ok:
            self.failures.append(failure)


@dataclass(frozen=True)
class Check:
    """One check of the suite.

    Attributes:
      id: identifier, as used by --only.
      title: what the check compares.
      threshold: limits that `run` applies to the measured values, by name.
      run: performs the check. It may raise SkipError; any other exception is recorded as a failure.
    """

    id: str
    title: str
    threshold: Mapping[str, Any]
    run: Callable[[Sizes, Machine], Findings]


def run_check(check: Check, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """Runs a check; returns id, title, status, reason (unless passed), threshold, measured and seconds."""
    start = time.perf_counter()
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
    return {**record, "measured": findings.measured, "seconds": round(time.perf_counter() - start, 2)}


def run_checks(
    checks: Sequence[Check], sizes: Sizes, machine: Machine, write: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Runs checks in order and reports each on standard error.

    Args:
      checks: the checks to run.
      sizes: sizes of models and batches.
      machine: the machine they run on.
      write: called with all records so far after every check, so that no result is lost if the process is killed.

    Returns:
      The records of `run_check`.
    """
    records: list[dict[str, Any]] = []
    for check in checks:
        log(f"{check.id} {check.title} ...")
        records.append(record := run_check(check, sizes, machine))
        reason = f": {record['reason']}" if "reason" in record else ""
        log(f"{check.id} {record['status']} in {record['seconds']:.1f} s{reason}")
        write(records)
    return records
