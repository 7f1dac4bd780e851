"""Runs contenders in turn, so that changes in the machine's speed affect all of them alike."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
from tqdm import tqdm

from psann_jax.bench.workers import Worker

_ROUNDS = 10


def take_turns(workers: Sequence[Worker], n_steps: int, *args: Any) -> tuple[list[list[list[Any]]], list[float], float]:
    """Runs the same number of steps of each contender, in rounds of one block per contender.

    Args:
      workers: the contenders.
      n_steps: steps of each contender.
      args: passed to their `run` after the number of steps.

    Returns:
      What `run` returned for each step, by round and contender; processor seconds of each contender over all cores;
      and the mean number of cores that other processes kept busy.
    """
    began, busy = time.perf_counter(), _busy_seconds()
    used = [worker.cpu_seconds() for worker in workers]
    n_rounds = min(_ROUNDS, n_steps)
    rounds = []
    with tqdm(total=n_steps * len(workers), unit="step", file=sys.stderr, dynamic_ncols=True, disable=None) as bar:
        for r in range(n_rounds):
            size = n_steps * (r + 1) // n_rounds - n_steps * r // n_rounds
            blocks: list[list[Any]] = [[] for _ in workers]
            # Every second round runs in reverse order, so that no contender is always the first after a pause.
            for i in sorted(range(len(workers)), reverse=r % 2 == 1):
                bar.set_description_str(workers[i].name)
                blocks[i] = workers[i].ask("run", size, *args)
                bar.update(size)
            rounds.append(blocks)
            if bar.disable:
                log(f"round {r + 1} of {n_rounds}")
    used = [worker.cpu_seconds() - before for worker, before in zip(workers, used, strict=True)]
    others = (_busy_seconds() - busy - sum(used)) / (time.perf_counter() - began)
    return rounds, used, max(others, 0.0)


def _busy_seconds() -> float:
    """Processor seconds that the machine has spent on all processes."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


def log(text: str) -> None:
    """Prints a line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
