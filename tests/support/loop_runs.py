"""Runs of the training loop on a tiny model, and what they leave."""

import dataclasses

import jax
import numpy as np

from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.metrics import read_metrics

TIMINGS = {"tokens_per_s", "data_wait"}


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(workdir / "metrics.jsonl")]


def state_of(workdir, base):
    _, config, _, compiled = base
    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        return checkpoints.restore(checkpoints.latest(), compiled.spec.with_shardings())


def assert_same_end(workdir, base, uninterrupted):
    _, rows, state = uninterrupted
    np.testing.assert_equal(sorted(rows_of(workdir), key=str), sorted(rows, key=str))
    jax.tree.map(np.testing.assert_array_equal, state_of(workdir, base), state)


def with_sections(config, **sections):
    """Returns a config with other values in some sections."""
    changed = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **changed)


def stop_at(monkeypatch, *, step, call=0):
    """Makes `should_stop` return True at a step, after `call` calls there."""
    calls = {"n": 0}

    def should_stop(self, now):
        calls["n"] += now == step
        return now == step and calls["n"] > call

    monkeypatch.setattr(loop.StopSignals, "should_stop", should_stop)
