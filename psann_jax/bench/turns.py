"""Contenders at work in turn, so that a machine that slows down or is shared slows all of them."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
from tqdm import tqdm

from psann_jax.bench.workers import Worker

_ROUNDS = 10


def take_turns(workers: Sequence[Worker], n_steps: int, *args: Any) -> tuple[list[list[list[Any]]], list[float], float]:
    """Has every contender take the same number of steps, a block of them each round.

    Args:
      workers: the contenders.
      n_steps: of each.
      args: for their `run`, after the number of steps.

    Returns:
      What `run` gave for every step, by round and contender; processor seconds of each contender, over all cores;
      and how many cores other processes kept busy meanwhile.
    """
    began, busy = time.perf_counter(), _busy_seconds()
    used = [worker.cpu_seconds() for worker in workers]
    n_rounds = min(_ROUNDS, n_steps)
    rounds = []
    with tqdm(total=n_steps * len(workers), unit="step", file=sys.stderr, dynamic_ncols=True, disable=None) as bar:
        for r in range(n_rounds):
            size = n_steps * (r + 1) // n_rounds - n_steps * r // n_rounds
            blocks: list[list[Any]] = [[] for _ in workers]
            # Every other round goes backwards, so that nobody is always first after a pause.
            for i in sorted(range(len(workers)), reverse=r % 2 == 1):
                bar.set_description_str(workers[i].name)
                blocks[i] = workers[i].ask("run", size, *args)
                bar.update(size)
            rounds.append(blocks)
            if bar.disable:
                say(f"round {r + 1} of {n_rounds}")
    used = [worker.cpu_seconds() - before for worker, before in zip(workers, used, strict=True)]
    others = (_busy_seconds() - busy - sum(used)) / (time.perf_counter() - began)
    return rounds, used, max(others, 0.0)


def _busy_seconds() -> float:
    """Processor time that the machine has spent on all processes."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
