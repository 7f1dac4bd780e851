"""The training command with a fault built in: python faulty_main.py FAULT[=STEP] --config=... [flags].

Each fault replaces one function, so that it happens at the same moment on every machine. All else is the real command.
"""

import itertools
import locale
import os
import random
import signal
import sys
import time
from importlib import import_module

import jax.numpy as jnp
import numpy as np

from psann_jax.cli.flags import run_command
from psann_jax.cli.train import main
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.checkpoints import Checkpoints

_POISON = -7  # as a position, which no batch has


def before(owner, name, act):
    """Calls `act` with the arguments of every call of a function, before the call."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def after(owner, name, act):
    """Calls `act` with the arguments of every call of a function, after the call."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        result = original(*args, **kwargs)
        act(*args, **kwargs)
        return result

    setattr(owner, name, replacement)


def send(number):
    os.kill(os.getpid(), number)


def step_of(path):
    return int(path.name.removeprefix("step_"))


def in_compilation(number, _):
    """The signal comes while the steps are being compiled."""
    before(import_module("psann_jax.train.compilation"), "make_eval_step", lambda *_: send(number))


def in_evaluation(number, step):
    """The signal comes between the batches of the evaluation after a step."""
    current = [0]
    before(loop._Run, "_evaluate", lambda run: current.__setitem__(0, run.step))
    original = LanguageModel.valid_batches

    def valid_batches(*args):
        for i, batch in enumerate(original(*args)):
            if i == 1 and current[0] == step:
                send(number)
            yield batch

    LanguageModel.valid_batches = valid_batches


def in_save(number, step):
    """The signal comes when the save of a step, or of the first one after it, has just begun in the background."""
    after(Checkpoints, "_start", lambda self, saved, *_, **__: send(number) if saved >= step else None)


def before_checksums(number, step):
    """The signal comes when a checkpoint, of this step or the next, is complete and has no checksums yet."""
    checkpoints = import_module("psann_jax.train.checkpoints")
    before(checkpoints, "write_checksums", lambda path: send(number) if step_of(path) >= step else None)


def poison(steps):
    """Makes the loss and so the gradients of the updates after `steps` NaN."""
    batches, loss = LanguageModel.train_batches, LanguageModel.loss

    def train_batches(self, start_step, *args):
        for step, batch in zip(itertools.count(start_step), batches(self, start_step, *args), strict=False):
            positions = np.array(batch["positions"])
            if step in steps:
                positions[0, 0] = _POISON
            yield {**batch, "positions": positions}

    def poisoned_loss(self, params, batch, key, step):
        total, stats = loss(self, params, batch, key, step)
        return jnp.where(jnp.any(batch["positions"] == _POISON), jnp.nan, 1.0) * total, stats

    LanguageModel.train_batches, LanguageModel.loss = train_batches, poisoned_loss


def odd_clock(direction):
    """The time of day jumps by up to an hour whenever it is asked for, 1: on, -1: back."""
    draw, jumped = random.Random(0), [0.0]
    real = time.time

    def now():
        jumped[0] += direction * draw.uniform(0, 3600)
        return real() + jumped[0]

    time.time, time.time_ns = now, lambda: int(now() * 1e9)


def commas():
    """The program takes on the locale of its environment, which must write decimal commas."""
    locale.setlocale(locale.LC_ALL, "")
    assert locale.localeconv()["decimal_point"] == ","


FAULTS = {
    "term-in-compilation": lambda step: in_compilation(signal.SIGTERM, step),
    "term-in-evaluation": lambda step: in_evaluation(signal.SIGTERM, step),
    "term-in-save": lambda step: in_save(signal.SIGTERM, step),
    "kill-in-save": lambda step: in_save(signal.SIGKILL, step),
    "kill-before-checksums": lambda step: before_checksums(signal.SIGKILL, step),
    "nan-once": lambda step: poison({step}),
    "nan-from": lambda step: poison(range(step, 1 << 30)),
    "clock-back": lambda _: odd_clock(-1),
    "clock-on": lambda _: odd_clock(1),
    "locale": lambda _: commas(),
}


if __name__ == "__main__":
    fault, _, at = sys.argv.pop(1).partition("=")
    FAULTS[fault](int(at or 0))
    run_command(main)
