"""Trains the tiny model in a workdir up to a step and stops there as a signal would; alone or as one of several."""

import sys
from pathlib import Path

from tiny import tiny_config

from psann_jax.tasks.language_model import LanguageModel
from psann_jax.train import loop
from psann_jax.train.processes import join


def main(directory, workdir, fsdp, stop):
    """Args: directory of the text, workdir, size of the fsdp axis, the step to stop at."""
    config = tiny_config(Path(directory), mesh__fsdp=int(fsdp))
    join(timeout_s=60)
    loop.StopSignals.should_stop = lambda self, step: step == int(stop)
    loop.train(config, lambda: LanguageModel.load(config, progress=False), Path(workdir))


if __name__ == "__main__":
    main(*sys.argv[1:])
