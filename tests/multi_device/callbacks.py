"""Trains the tiny model in several processes with a callback that stops the run or raises; prints what became of it."""

import sys
from pathlib import Path

import jax

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.callbacks import Callback, Callbacks
from psann_jax.train.processes import join
from tests.support.tiny import tiny_config


class At3(Callback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, step, metrics):
        assert jax.process_index() == 0
        if step == 3:
            self.stop_training = self.action == "stop"
            if self.action == "fail":
                raise LookupError("of the callback")


def main(directory, workdir, action):
    config = tiny_config(Path(directory), mesh__fsdp=2, train__steps=400, checkpoint__every=400)
    join(timeout_s=60)
    callbacks = Callbacks([At3(action)])
    summary = loop.train(config, lambda: LanguageModel.load(config, progress=False), Path(workdir), callbacks=callbacks)
    try:
        callbacks.raise_error()
        error = "no error"
    except LookupError as raised:
        error = raised.args[0]
    line = f"{jax.process_index()} {summary['steps']} {summary.get('stopped', False)} {error}\n"
    Path(workdir, f"end_{jax.process_index()}").write_text(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
