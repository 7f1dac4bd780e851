"""Trains the tiny model in a workdir up to a step and stops there as a signal would; alone or as one of several."""

import sys
from pathlib import Path

from psann_jax.tasks.lm import LanguageModel
from psann_jax.train import loop
from psann_jax.train.processes import join
from tests.support.tiny import tiny_config


def main(directory, workdir, stop, *mesh):
    """Args: directory of the text, workdir, the step to stop at, sizes of mesh axes as in fsdp=2."""
    sizes = dict(size.split("=") for size in mesh)
    overrides = {f"mesh__{axis}": int(size) for axis, size in sizes.items()}
    config = tiny_config(Path(directory), model__n_heads=8, **overrides)
    join(timeout_s=60)
    loop.StopSignals.should_stop = lambda self, step: step == int(stop)
    loop.train(config, lambda: LanguageModel.load(config, progress=False), Path(workdir))


if __name__ == "__main__":
    main(*sys.argv[1:])
