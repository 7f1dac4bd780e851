"""The training command with an injected fault: python faulty_main.py FAULT[=STEP] --config=... [flags].

Each fault patches one function, so it happens at the same point on every machine. The rest is the real command.
"""

import itertools
import locale
import os
import random
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from psann_jax.cli.program import run_program
from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop, mirror
from psann_jax.train.checkpoints import Checkpoints
from psann_jax.train.remote_checkpoints import RemoteCheckpoints
from psann_jax.utils.buckets import Bucket
from psann_jax.utils.checksums import CHECKSUMS

_POISON = -7  # a position that no real batch has


def before(owner, name, act):
    """Patches a function to call `act` with its arguments first."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def after(owner, name, act):
    """Patches a function to call `act` with its arguments afterwards."""
    original = getattr(owner, name)

    def replacement(*args, **kwargs):
        result = original(*args, **kwargs)
        act(*args, **kwargs)
        return result

    setattr(owner, name, replacement)


def send(number):
    os.kill(os.getpid(), number)


def step_of(path):
    return int(path.name.removeprefix("step_").partition(".")[0])


def in_compilation(number, _):
    """Sends the signal during compilation."""
    before(import_module("psann_jax.train.compilation"), "make_eval_step", lambda *_: send(number))


def in_evaluation(number, step):
    """Sends the signal between two batches of the evaluation after a step."""
    current = [0]
    before(loop._Run, "_evaluate", lambda run: current.__setitem__(0, run.step))
    original = LanguageModel.valid_batches

    def valid_batches(*args):
        for i, batch in enumerate(original(*args)):
            if i == 1 and current[0] == step:
                send(number)
            yield batch

    LanguageModel.valid_batches = valid_batches


def in_update(number, step):
    """Sends the signal before the third micro-batch of the update that follows a step."""
    calls = itertools.count()
    import_module("psann_jax.train.micro_batches")._DISPATCH_S = 0.0  # as on a machine where each takes seconds
    before(
        loop._Run,
        "_before_micro_batch",
        lambda run: send(number) if run.step == step and next(calls) == 2 else None,
    )


def in_save(number, step):
    """Sends the signal when the first save at or after a step has just started in the background."""
    after(Checkpoints, "_start", lambda self, saved, *_, **__: send(number) if saved >= step else None)


def soon_after_save_began(number, step):
    """Sends the signal a random moment after the first save at or after a step has started in the background."""

    def start(self, saved, *_, **__):
        if saved >= step:
            threading.Timer(random.uniform(0, 0.1), send, [number]).start()

    after(Checkpoints, "_start", start)


def in_deletion(number, step):
    """Sends the signal when the first deletion from a step on has removed a random number of files."""
    counter, files = itertools.count(), random.randint(0, 15)

    def arm(path):
        if step_of(path) >= step and next(counter) == 0:
            unlinked = itertools.count()
            before(os, "unlink", lambda *_, **__: send(number) if next(unlinked) == files else None)

    before(import_module("psann_jax.train.checkpoint_deletion"), "remove", arm)


def before_checksums(number, step):
    """Sends the signal when the first checkpoint at or after a step is complete but has no checksums yet."""
    checkpoints = import_module("psann_jax.train.checkpoints")
    before(checkpoints, "write_checksums", lambda path: send(number) if step_of(path) >= step else None)


# --- runs in a bucket ---------------------------------------------------------------------------------


def slow_steps():
    """Makes steps so slow, and looks for new checkpoints so frequent, that each checkpoint reaches the bucket."""
    mirror._POLL_S = 0.02
    before(loop._Run, "_save_and_evaluate_if_due", lambda _: time.sleep(0.04))


def in_upload(number, step):
    """Sends the signal when a random number of files of the first checkpoint from a step on are in the bucket."""
    slow_steps()
    upload, armed, files = Bucket.upload, [False], random.randint(0, 15)

    def upload_some(self, directory, names):
        if armed[0]:
            upload(self, directory, list(names)[:files])
            send(number)
        upload(self, directory, names)

    Bucket.upload = upload_some
    before(RemoteCheckpoints, "push", lambda self, _, saved, *__: armed.__setitem__(0, saved >= step))


def before_marker(number, step):
    """Sends the signal when all files of the first checkpoint from a step on are in the bucket, but its marker."""
    slow_steps()
    before(Bucket, "write", lambda self, name, _: send(number) if marks(name, step) else None)


def marks(name, step):
    return name.endswith(f"/{CHECKSUMS}") and step_of(Path(name).parent) >= step


def in_remote_deletion(number, step):
    """Sends the signal when the first deletion of a checkpoint has removed its marker and a random number of files."""
    slow_steps()
    delete, files = Bucket.delete, random.randint(0, 15)

    def delete_some(self, names):
        names = list(names)
        in_checkpoint = names and names[0].startswith("checkpoints/") and not names[0].endswith(CHECKSUMS)
        delete(self, names[:files] if in_checkpoint else names)
        if in_checkpoint:
            send(number)

    Bucket.delete = delete_some


def poison(steps):
    """Makes loss and gradients NaN in the updates that follow `steps`."""
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


def jumping_clock(direction):
    """Makes the system clock jump by up to an hour at every call, forwards (1) or backwards (-1)."""
    rng, offset = random.Random(0), [0.0]
    real = time.time

    def now():
        offset[0] += direction * rng.uniform(0, 3600)
        return real() + offset[0]

    time.time, time.time_ns = now, lambda: int(now() * 1e9)


def decimal_commas():
    """Sets the locale of the environment, which must use decimal commas."""
    locale.setlocale(locale.LC_ALL, "")
    assert locale.localeconv()["decimal_point"] == ","


FAULTS = {
    "term-in-compilation": lambda step: in_compilation(signal.SIGTERM, step),
    "term-in-evaluation": lambda step: in_evaluation(signal.SIGTERM, step),
    "term-in-update": lambda step: in_update(signal.SIGTERM, step),
    "term-in-save": lambda step: in_save(signal.SIGTERM, step),
    "kill-in-save": lambda step: in_save(signal.SIGKILL, step),
    "kill-soon-after-save-began": lambda step: soon_after_save_began(signal.SIGKILL, step),
    "kill-in-deletion": lambda step: in_deletion(signal.SIGKILL, step),
    "kill-before-checksums": lambda step: before_checksums(signal.SIGKILL, step),
    "slow": lambda _: slow_steps(),
    "kill-in-upload": lambda step: in_upload(signal.SIGKILL, step),
    "kill-before-marker": lambda step: before_marker(signal.SIGKILL, step),
    "kill-in-remote-deletion": lambda step: in_remote_deletion(signal.SIGKILL, step),
    "nan-once": lambda step: poison({step}),
    "nan-from": lambda step: poison(range(step, 1 << 30)),
    "clock-back": lambda _: jumping_clock(-1),
    "clock-forward": lambda _: jumping_clock(1),
    "locale": lambda _: decimal_commas(),
}


if __name__ == "__main__":
    fault, _, at = sys.argv.pop(1).partition("=")
    FAULTS[fault](int(at or 0))
    run_program(["train", *sys.argv[1:]])
